package lint

import (
	"fmt"
	"go/parser"
	"go/token"
	"regexp"
	"strings"
	"testing"
)

// maxSentenceWords is what a reader can hold of one sentence.
const maxSentenceWords = 40

// sentenceEnd is where a sentence ends: a mark and a blank, or the end of a paragraph or of an item of a list.
var sentenceEnd = regexp.MustCompile(`[.!?:;](?:["')\]]*)\s+|\n\s*\n|\n\s*(?:-|\d+\.)\s|\n\t`)

// longSentences: comments are read more often than written. Parts that a colon or a semicolon ends count for themselves.
func longSentences(s source) (offences []string) {
	if s.generated() {
		return nil
	}
	for _, group := range s.file.Comments {
		for _, long := range longIn(group.Text()) {
			offences = append(offences, s.at(group)+": "+long)
		}
	}
	return offences
}

func longIn(text string) (long []string) {
	for _, sentence := range sentenceEnd.Split(text, -1) {
		if words := strings.Fields(sentence); len(words) > maxSentenceWords {
			long = append(long, fmt.Sprintf("a sentence of %d words, at most %d: %.60s...", len(words), maxSentenceWords, strings.Join(words, " ")))
		}
	}
	return long
}

// notProse is what a document holds beside sentences: blocks of code, headings, and the borders of a table's cells.
var notProse = regexp.MustCompile("(?ms)^```.*?^```|^    [^\n]*|^#+ [^\n]*|\\|")

func longInDocument(text string) []string {
	return longIn(notProse.ReplaceAllString(strings.ReplaceAll(text, "**", ""), "\n\n"))
}

// TestSentences holds the length of sentences in comments and documents.
func TestSentences(t *testing.T) {
	for _, s := range parseModule(t) {
		for _, o := range longSentences(s) {
			t.Error(o)
		}
	}
	for path, text := range documents(t, ".md") {
		for _, long := range longInDocument(text) {
			t.Errorf("%s: %s", path, long)
		}
	}
}

// TestSentencesBite shows the rule a sentence that is too long and some that are not.
func TestSentencesBite(t *testing.T) {
	words := strings.TrimSpace(strings.Repeat("word ", 30))
	for code, want := range map[string]int{
		"// " + words + "\n// " + words + "\n":     1,
		"// " + words + ".\n// " + words + "\n":    0,
		"// " + words + ":\n// " + words + "\n":    0,
		"// " + words + "\n//\n// " + words + "\n": 0,
		"//   - " + words + "\n//   - " + words:    0,
	} {
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, "a.go", "package a\n\n"+code+"\nvar _ = 1\n", parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if got := longSentences(source{path: "a.go", file: file, fset: fset}); len(got) != want {
			t.Errorf("%q: %q, want %d", code, got, want)
		}
	}
	for text, want := range map[string]int{
		words + "\n" + words: 1,
		words + ".\n" + words + ":\n\n- " + words + "\n- " + words: 0,
		"| " + words + " | " + words + " |\n":                      0,
		"```\n" + words + " " + words + "\n```\n":                  0,
		"# " + words + "\n" + words:                                0,
	} {
		if got := longInDocument(text); len(got) != want {
			t.Errorf("%q: %q, want %d", text, got, want)
		}
	}
}
