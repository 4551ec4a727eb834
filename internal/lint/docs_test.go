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

// cited is a document that a comment or a message sends its reader to.
var cited = regexp.MustCompile(`\bdocs/[\w/.-]+\.md\b`)

// TestCitedDocuments: what code sends its reader to exists.
func TestCitedDocuments(t *testing.T) {
	found := 0
	for path, text := range documents(t, ".go") {
		for _, name := range cited.FindAllString(text, -1) {
			found++
			if _, err := os.Stat(filepath.Join(moduleRoot(t), name)); err != nil {
				t.Errorf("%s cites %s: %v", path, name, err)
			}
		}
	}
	if found == 0 {
		t.Error("no code cites a document: the pattern is wrong")
	}
}

// imported is the module of a library that a file imports, without a version.
var imported = regexp.MustCompile(`(?m)^(?:import )?\s*(?:\w+ )?"((?:github\.com/[\w.-]+|golang\.org/x|k8s\.io|google\.golang\.org|go\.yaml\.in|pgregory\.net)/[\w.-]+)`)

// TestLibraries: ADR 5 names every library.
func TestLibraries(t *testing.T) {
	root := moduleRoot(t)
	b, err := os.ReadFile(filepath.Join(root, "docs/adr/0005-libraries.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for path, text := range documents(t, ".go") {
		if strings.HasPrefix(path, filepath.Join(root, "tools")+"/") {
			continue // modules of their own
		}
		for _, m := range imported.FindAllStringSubmatch(text, -1) {
			name := strings.TrimPrefix(strings.TrimPrefix(m[1], "github.com/"), "golang.org/")
			if !strings.HasPrefix(name, "storaged/") && !named[name] && !strings.Contains(string(b), name) {
				t.Errorf("docs/adr/0005-libraries.md does not name %s, which %s imports", m[1], path)
			}
			named[name] = true
		}
	}
	if len(named) < 20 {
		t.Errorf("%d libraries are imported: the pattern is wrong", len(named))
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

// TestRaftTraps: the tests that show the traps of hashicorp/raft exist, every trap names one, and the page is of the version in use.
func TestRaftTraps(t *testing.T) {
	root := moduleRoot(t)
	page, err := os.ReadFile(filepath.Join(root, "docs/raft-traps.md"))
	if err != nil {
		t.Fatal(err)
	}
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	if v := regexp.MustCompile(`hashicorp/raft (v\S+)`).FindSubmatch(mod); v == nil || !strings.Contains(string(page), string(v[1])) {
		t.Errorf("docs/raft-traps.md is not of the version in go.mod, %s: read it again, with the library beside it", v)
	}
	var tests strings.Builder
	for path, text := range documents(t, ".go") {
		if strings.HasSuffix(path, "_test.go") {
			tests.WriteString(text)
		}
	}
	traps := 0
	for _, line := range strings.Split(string(page), "\n") {
		cells := strings.Split(line, "|")
		if len(cells) != 6 || strings.HasPrefix(line, "|---") || strings.HasPrefix(line, "| where ") {
			continue
		}
		traps++
		shown := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(cells[4], -1)
		if len(shown) == 0 {
			t.Errorf("docs/raft-traps.md: no test shows this trap: %s", line)
		}
		for _, m := range shown {
			if !strings.Contains(tests.String(), "func "+m[1]+"(") {
				t.Errorf("docs/raft-traps.md names %s, which is nowhere", m[1])
			}
		}
	}
	if traps < 20 {
		t.Errorf("docs/raft-traps.md lists %d traps: the pattern is wrong", traps)
	}
}

var (
	alertName  = regexp.MustCompile(`(?m)^\s+- alert: (\w+)$`)
	runbookURL = regexp.MustCompile(`(?m)^\s+runbook_url: "https://github\.com/storaged/storaged/blob/main/docs/runbook\.md#(\w+)"$`)
	// triedBy are the tests that a row of the runbook's disasters names.
	triedBy = regexp.MustCompile("`(Test\\w+)`")
)

// TestRunbook: every alert has an entry in docs/runbook.md, which its annotation leads to, and no entry is of an alert that is not there. The
// tests that the disasters name exist.
func TestRunbook(t *testing.T) {
	root := moduleRoot(t)
	read := func(path string) string {
		b, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	rules, book := read("deploy/prometheus/alerts.yml"), read("docs/runbook.md")
	entries := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^### (Storaged\w+)$`).FindAllStringSubmatch(book, -1) {
		entries[m[1]] = true
	}
	rule := strings.Split(rules, "- alert: ")[1:]
	for _, text := range rule {
		name, _, _ := strings.Cut(text, "\n")
		if !entries[name] {
			t.Errorf("the runbook has no entry for alert %s", name)
		}
		delete(entries, name)
		m := runbookURL.FindStringSubmatch(text)
		if m == nil || m[1] != strings.ToLower(name) {
			t.Errorf("runbook_url of alert %s does not lead to its entry", name)
		}
	}
	for name := range entries {
		t.Errorf("the runbook has an entry for %s, which is no alert", name)
	}
	if len(rule) < 10 || len(alertName.FindAllString(rules, -1)) != len(rule) {
		t.Errorf("%d alerts: the pattern is wrong", len(rule))
	}
	tests := map[string]bool{}
	for path, text := range documents(t, "_test.go") {
		if strings.HasPrefix(path, root) {
			for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(text, -1) {
				tests[m[1]] = true
			}
		}
	}
	named := triedBy.FindAllStringSubmatch(book, -1)
	for _, m := range named {
		if !tests[m[1]] {
			t.Errorf("the runbook names the test %s, which does not exist", m[1])
		}
	}
	if len(named) < 5 {
		t.Errorf("the runbook names %d tests: the pattern is wrong", len(named))
	}
}
