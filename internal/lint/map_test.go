package lint

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// mapRow is a row of CONTRIBUTING's map; mapPath is a path in its first column.
var (
	mapRow  = regexp.MustCompile("(?m)^\\| (`[^|]*) \\|")
	mapPath = regexp.MustCompile("`([^`]+)`")
)

// rootInMap is how the map names the root package.
const rootInMap = "*.go"

// TestMap: CONTRIBUTING's map names every package once, in an order in which imports only go down, and nothing that is
// not there.
func TestMap(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(moduleRoot(t), "CONTRIBUTING.md"))
	if err != nil {
		t.Fatal(err)
	}
	offences := offencesOfMap(string(text), list(t))
	for _, o := range offences {
		t.Error(o)
	}
	for _, path := range mapOf(string(text)) {
		if _, err := os.Stat(filepath.Join(moduleRoot(t), path)); path != rootInMap && err != nil {
			t.Errorf("the map in CONTRIBUTING.md names %s: %v", path, err)
		}
	}
}

// mapOf returns the paths of the map, from above.
func mapOf(text string) (paths []string) {
	_, text, _ = strings.Cut(text, "\n## The map of the house\n")
	text, _, _ = strings.Cut(text, "\n## ")
	for _, row := range mapRow.FindAllStringSubmatch(text, -1) {
		for _, m := range mapPath.FindAllStringSubmatch(row[1], -1) {
			paths = append(paths, m[1])
		}
	}
	return paths
}

// offencesOfMap says which packages the map lacks or has twice, and which imports go up in it.
func offencesOfMap(text string, pkgs []listed) (offences []string) {
	place := map[string]int{}
	for i, path := range mapOf(text) {
		if path == rootInMap {
			path = ""
		}
		full := strings.TrimSuffix(module+"/"+path, "/")
		if place[full] > 0 {
			offences = append(offences, "the map in CONTRIBUTING.md names "+path+" twice")
			continue
		}
		place[full] = i + 1
	}
	for _, p := range pkgs {
		if place[p.ImportPath] == 0 {
			offences = append(offences, "the map in CONTRIBUTING.md lacks "+p.ImportPath)
			continue
		}
		for _, to := range p.Imports {
			if match(to, "./") && place[to] > 0 && place[to] < place[p.ImportPath] {
				offences = append(offences, "an import goes up in the map of CONTRIBUTING.md: "+p.ImportPath+" imports "+to)
			}
		}
	}
	return offences
}

// TestMapBites shows the check a map for each of its reasons.
func TestMapBites(t *testing.T) {
	pkgs := []listed{{ImportPath: module + "/a", Imports: []string{module + "/b", "os"}}, {ImportPath: module + "/b", Imports: []string{module}}, {ImportPath: module}}
	for _, tc := range []struct {
		name, rows string
		want       int
	}{
		{"in order", "| `a` | first |\n| `b` | second |\n| `*.go` | last |\n", 0},
		{"two in a row", "| `a`, `b` | both |\n| `*.go` | last |\n", 0},
		{"a package is missing", "| `a` | first |\n| `*.go` | last |\n", 1},
		{"a package is there twice", "| `a` | first |\n| `b`, `a` | second |\n| `*.go` | last |\n", 1},
		{"an import goes up", "| `b` | first |\n| `a` | second |\n| `*.go` | last |\n", 1},
		{"the root above", "| `*.go` | first |\n| `a` | second |\n| `b` | third |\n", 1},
	} {
		text := "\n## The map of the house\n\n" + tc.rows + "\n## Next\n| `c` | not of the map |\n"
		if got := offencesOfMap(text, pkgs); len(got) != tc.want {
			t.Errorf("%s: %q, want %d", tc.name, got, tc.want)
		}
	}
}
