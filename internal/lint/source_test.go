package lint

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// source is one parsed file.
type source struct {
	path string // relative to the module, with slashes
	file *ast.File
	fset *token.FileSet
}

func (s source) isTest() bool {
	return strings.HasSuffix(s.path, "_test.go") || strings.HasPrefix(s.path, "test/")
}

func (s source) generated() bool { return ast.IsGenerated(s.file) }

func (s source) imports(path string) bool {
	return slices.ContainsFunc(s.file.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == strconv.Quote(path) })
}

func (s source) at(n ast.Node) string {
	return fmt.Sprintf("%s:%d", s.path, s.fset.Position(n.Pos()).Line)
}

// unfinished are the words that mark work left over. They are put together here so that this file does not
// contain them.
var unfinished = regexp.MustCompile(`\b(` + strings.Join([]string{"TO" + "DO", "FIX" + "ME", "XX" + "X"}, "|") + `)\b`)

// sourceRules each return one line for every offence in a file.
var sourceRules = []func(source) []string{
	unfinishedWork, sleepingTests, skippedTests, hiddenEffects, impureCatalog, impureTables, rootByName, errorKey,
}

// TestSources holds what the house does not allow in its sources.
func TestSources(t *testing.T) {
	for _, s := range parseModule(t) {
		for _, rule := range sourceRules {
			for _, offence := range rule(s) {
				t.Error(offence)
			}
		}
	}
}

// TestPackageComments: every package says what it is for.
func TestPackageComments(t *testing.T) {
	documented := map[string]bool{}
	for _, s := range parseModule(t) {
		if dir := filepath.Dir(s.path); !strings.HasSuffix(s.path, "_test.go") {
			documented[dir] = documented[dir] || s.file.Doc != nil || s.generated()
		}
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("the package in %s has no package comment", dir)
		}
	}
}

// unfinishedWork: what is not done stands in an issue, not in a comment.
func unfinishedWork(s source) (offences []string) {
	for _, group := range s.file.Comments {
		for _, c := range group.List {
			if word := unfinished.FindString(c.Text); word != "" && !s.generated() {
				offences = append(offences, s.at(c)+": "+word+": finish it, or say it in an issue")
			}
		}
	}
	return offences
}

// sleepingTests: a test moves the clock (in a file that uses testing/synctest, a sleep does just that) or waits on a
// condition with a deadline.
func sleepingTests(s source) []string {
	virtual := s.imports("testing/synctest") || strings.HasPrefix(s.path, "test/sim/") // the simulation has no other time
	if !s.isTest() || virtual {
		return nil
	}
	return calls(s, "a sleep in a test: use testing/synctest, or wait on a condition with a deadline", "time.Sleep")
}

// skippedTests: a test that cannot run sits behind a build tag, where `make test` says what is missing.
func skippedTests(s source) (offences []string) {
	if !s.isTest() {
		return nil
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			if sel, ok := call.Fun.(*ast.SelectorExpr); ok && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name) {
				offences = append(offences, s.at(n)+": a skipped test: put it behind a build tag")
			}
		}
		return true
	})
	return offences
}

// hiddenEffects: no init functions and no global registries; registries are handed in.
func hiddenEffects(s source) []string {
	if s.generated() {
		return nil
	}
	offences := calls(s, "a global registry: take a prometheus.Registerer", "prometheus.MustRegister", "prometheus.Register")
	for _, decl := range s.file.Decls {
		if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
			offences = append(offences, s.at(f)+": an init function: do it where it is called")
		}
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok && strings.HasPrefix(selector(sel), "prometheus.Default") {
			offences = append(offences, s.at(n)+": a global registry: take a prometheus.Registerer")
		}
		return true
	})
	return offences
}

// impureCatalog: the catalog has no clock and no goroutine (its imports are held by TestImports).
func impureCatalog(s source) []string {
	if !strings.HasPrefix(s.path, "server/catalog/") || s.isTest() {
		return nil
	}
	offences := calls(s, "a clock in the catalog: times come in commands",
		"time.Now", "time.Since", "time.Until", "time.After", "time.AfterFunc", "time.NewTimer", "time.NewTicker", "time.Tick", "time.Sleep")
	ast.Inspect(s.file, func(n ast.Node) bool {
		if _, ok := n.(*ast.GoStmt); ok {
			offences = append(offences, s.at(n)+": a goroutine in the catalog")
		}
		return true
	})
	return offences
}

// impureTables: of the log the tables know the names of places, and nothing that reads or writes (their other imports are
// held by TestImports).
func impureTables(s source) (offences []string) {
	if !strings.HasPrefix(s.path, "replication/extent/table/") || s.isTest() {
		return nil
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if name, ok := strings.CutPrefix(selector(sel), "segment."); ok &&
			!slices.Contains([]string{"SegmentNo", "Position", "PositionOf", "GroupKey"}, name) {
			offences = append(offences, s.at(n)+": segment."+name+" in the tables, which know the names of places only")
		}
		return true
	})
	return offences
}

// rootByName: the vocabulary has one name everywhere.
func rootByName(s source) (offences []string) {
	for _, i := range s.file.Imports {
		if i.Path.Value == strconv.Quote(module) && (i.Name == nil || i.Name.Name != "storage") {
			offences = append(offences, s.at(i)+": import the root as storage")
		}
	}
	return offences
}

// errorKey: whoever searches logs finds errors under one key.
func errorKey(s source) (offences []string) {
	ast.Inspect(s.file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || !slices.Contains([]string{"Debug", "Info", "Warn", "Error", "Log", "With"}, sel.Sel.Name) {
			return true
		}
		for _, arg := range call.Args[min(1, len(call.Args)):] {
			if lit, ok := arg.(*ast.BasicLit); ok && lit.Value == `"err"` {
				offences = append(offences, s.at(arg)+`: an error's key in a log is "error"`)
			}
		}
		return true
	})
	return offences
}

// calls returns one line for each call of one of the functions, named "package.Function".
func calls(s source, why string, functions ...string) (offences []string) {
	ast.Inspect(s.file, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			if sel, ok := call.Fun.(*ast.SelectorExpr); ok && slices.Contains(functions, selector(sel)) {
				offences = append(offences, s.at(n)+": "+why)
			}
		}
		return true
	})
	return offences
}

// selector returns "package.Name" for a qualified name, else "".
func selector(sel *ast.SelectorExpr) string {
	if pkg, ok := sel.X.(*ast.Ident); ok {
		return pkg.Name + "." + sel.Sel.Name
	}
	return ""
}

// parseModule reads every Go file of the module, nested modules and test data apart.
func parseModule(t *testing.T) []source {
	t.Helper()
	root := moduleRoot(t)
	var sources []source
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && skipDir(path, d.Name()):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go"):
			return nil
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		sources = append(sources, source{path: filepath.ToSlash(rel), file: file, fset: fset})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sources
}

// skipDir says whether a directory holds no code of this module.
func skipDir(path, name string) bool {
	if strings.HasPrefix(name, ".") || name == "testdata" || name == "bin" {
		return true
	}
	_, err := os.Stat(filepath.Join(path, "go.mod"))
	return err == nil
}

func moduleRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("no go.mod above the working directory")
		}
		dir = parent
	}
}

// TestSourceRulesBite shows every source rule an offence and a file that is in order.
func TestSourceRulesBite(t *testing.T) {
	for _, tc := range []struct {
		name, path, code string
		want             int
	}{
		{"left-over work", "nbd/a.go", "package nbd\n// TO" + "DO: later\n", 1},
		{"the word inside another", "nbd/a.go", "package nbd\n// TO" + "DOS is an island\n", 0},
		{"sleeping test", "nbd/a_test.go", "package nbd\nfunc f() { time.Sleep(1) }\n", 1},
		{"virtual sleep", "nbd/a_test.go", "package nbd\nimport \"testing/synctest\"\nfunc f() { time.Sleep(1); synctest.Wait() }\n", 0},
		{"sleep outside tests", "nbd/a.go", "package nbd\nfunc f() { time.Sleep(1) }\n", 0},
		{"skipped test", "nbd/a_test.go", "package nbd\nfunc f(t *testing.T) { t.Skip() }\n", 1},
		{"init", "nbd/a.go", "package nbd\nfunc init() {}\n", 1},
		{"global registry", "nbd/a.go", "package nbd\nfunc f() { prometheus.MustRegister(c) }\n", 1},
		{"default registerer", "nbd/a.go", "package nbd\nvar r = prometheus.DefaultRegisterer\n", 1},
		{"clock in the catalog", "server/catalog/a.go", "package catalog\nfunc f() { time.Now() }\n", 1},
		{"clock elsewhere", "server/control/a.go", "package control\nfunc f() { time.Now() }\n", 0},
		{"the log in the tables", "replication/extent/table/a.go", "package table\nfunc f() { segment.Open(segment.Config{}) }\n", 2},
		{"a place of the log in the tables", "replication/extent/table/a.go", "package table\nvar p = segment.PositionOf(1, 2)\n", 0},
		{"the root without a name", "nbd/a.go", "package nbd\nimport \"" + module + "\"\n", 1},
		{"the root by its name", "nbd/a.go", "package nbd\nimport storage \"" + module + "\"\n", 0},
		{"another key for an error", "nbd/a.go", "package nbd\nfunc f() { l.Warn(\"lost\", \"node\", 1, \"err\", e) }\n", 1},
		{"the key of errors", "nbd/a.go", "package nbd\nfunc f() { l.Warn(\"err\", \"error\", e) }\n", 0},
		{"goroutine in the catalog", "server/catalog/a.go", "package catalog\nfunc f() { go f() }\n", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, tc.path, tc.code, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, rule := range sourceRules {
				got = append(got, rule(source{path: tc.path, file: file, fset: fset})...)
			}
			if len(got) != tc.want {
				t.Errorf("found %d offences, want %d: %q", len(got), tc.want, got)
			}
		})
	}
}
