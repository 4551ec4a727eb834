package lint

import (
	"go/ast"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var (
	link       = regexp.MustCompile(`\]\(([^)#\s]+)(#[^)]*)?\)`)
	metricName = regexp.MustCompile(`\bstorage_[a-z]+_[a-z_]+[a-z]\b`)
	// derived are the endings that Prometheus adds to a histogram's name.
	derived = regexp.MustCompile(`_(bucket|sum|count)$`)
)

// TestLinks: what a document of ours points to inside the tree is there.
func TestLinks(t *testing.T) {
	for path, text := range documents(t, ".md") {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), m[1])); err != nil {
				t.Errorf("%s points to %s: %v", path, m[1], err)
			}
		}
	}
}

// TestMetricsInDocuments: a metric that a document or an alert names is one that the code has.
func TestMetricsInDocuments(t *testing.T) {
	known, prefixes := metricNames(t)
	mentioned := 0
	for _, suffix := range []string{".md", ".yml"} {
		for path, text := range documents(t, suffix) {
			for _, name := range metricName.FindAllString(text, -1) {
				mentioned++
				if name = derived.ReplaceAllString(name, ""); !known[name] && !hasPrefix(name, prefixes) {
					t.Errorf("%s names the metric %s, which no code has", path, name)
				}
			}
		}
	}
	if mentioned == 0 {
		t.Error("no document names a metric: the pattern is wrong")
	}
}

func hasPrefix(name string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// metricNames returns every string of the code, tests apart, that looks like a metric's name or like the beginning
// of some ("storage_volume_").
func metricNames(t *testing.T) (names map[string]bool, prefixes []string) {
	t.Helper()
	names = map[string]bool{}
	for _, s := range parseModule(t) {
		if s.isTest() || s.generated() {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			text, err := strconv.Unquote(lit.Value)
			switch {
			case err != nil || !strings.HasPrefix(text, "storage_"):
			case strings.HasSuffix(text, "_"):
				prefixes = append(prefixes, text)
			default:
				names[text] = true
			}
			return true
		})
	}
	return names, prefixes
}

// documents returns the texts of all files of the tree with a suffix, by path.
func documents(t *testing.T, suffix string) map[string]string {
	t.Helper()
	root, texts := moduleRoot(t), map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && skipDir(path, d.Name()):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, suffix):
			return nil
		}
		b, err := os.ReadFile(path)
		texts[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return texts
}
