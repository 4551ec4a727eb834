package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"go.yaml.in/yaml/v3"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/transfer"
)

// Forms of output.
const (
	formTable = "table"
	formWide  = "wide"
	formJSON  = "json"
	formYAML  = "yaml"
)

func checkForm(form string) error {
	switch form {
	case formTable, formWide, formJSON, formYAML:
		return nil
	}
	return storage.E("read flag", storage.KindInvalid, "-o "+form, errors.New("use table, wide, json or yaml"))
}

// forProgram reports whether the output is for a program.
func (a *app) forProgram() bool { return a.flags.output == formJSON || a.flags.output == formYAML }

// show writes value for programs, or calls people. Field names come from the json tags in both forms.
func (a *app) show(value any, people func(w io.Writer, wide bool)) error {
	if !a.forProgram() {
		people(a.out, a.flags.output == formWide)
		return nil
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(value); err != nil {
		return storage.E("write output", storage.KindInternal, "", err)
	}
	out := text.Bytes()
	if a.flags.output == formYAML {
		var err error
		if out, err = toYAML(out); err != nil {
			return storage.E("write output", storage.KindInternal, "", err)
		}
	}
	_, err := a.out.Write(out)
	return transfer.LocalError("write", transfer.Output, err)
}

// keptError is the standard output, which remembers the first error: most of what is printed for people is printed by
// functions that return none, and whoever looks at the exit code is to learn that it was lost.
type keptError struct {
	io.Writer
	err error
}

// Write implements io.Writer.
func (k *keptError) Write(p []byte) (int, error) {
	n, err := k.Writer.Write(p)
	if k.err == nil {
		k.err = err
	}
	return n, err
}

// toYAML rewrites JSON, which is YAML in another style, keeping the order of fields.
func toYAML(text []byte) ([]byte, error) {
	var node yaml.Node
	if err := yaml.Unmarshal(text, &node); err != nil {
		return nil, err
	}
	plain(&node)
	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	if err := encoder.Encode(&node); err != nil {
		return nil, err
	}
	return out.Bytes(), encoder.Close()
}

// plain takes JSON's brackets and the quotes that YAML does not need off. A string that would read as something else
// without quotes keeps its type by the node's tag, and the encoder quotes it.
func plain(node *yaml.Node) {
	empty := (node.Kind == yaml.SequenceNode || node.Kind == yaml.MappingNode) && len(node.Content) == 0
	if !empty {
		node.Style = 0
	}
	for _, child := range node.Content {
		plain(child)
	}
}

// table lines up columns for people.
type table struct {
	head []string
	rows [][]string
}

func newTable(head ...string) *table { return &table{head: head} }

// more adds columns to the head if they are wanted. Rows are given with their cells in any case, which are left out without.
func (t *table) more(wanted bool, head ...string) *table {
	if wanted {
		t.head = append(t.head, head...)
	}
	return t
}

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells[:min(len(cells), len(t.head))]) }

// write prints the table, or instead of an empty one the sentence none.
func (t *table) write(w io.Writer, none string) {
	if len(t.rows) == 0 {
		fmt.Fprintln(w, none)
		return
	}
	columns := newColumns(w)
	for _, row := range append([][]string{t.head}, t.rows...) {
		fmt.Fprintln(columns, strings.Join(row, "\t"))
	}
	_ = columns.Flush() // the output keeps its first error
}

// section writes the table below an empty line, if it has rows.
func (t *table) section(w io.Writer) {
	if len(t.rows) > 0 {
		fmt.Fprintln(w)
		t.write(w, "")
	}
}

// newColumns lines up what is written to it between tabs.
func newColumns(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 0, 2, ' ', 0) }

// facts prints what one object is, a line a fact. Facts without a value are left out.
func facts(w io.Writer, pairs ...string) {
	columns := newColumns(w)
	for fact := range slices.Chunk(pairs, 2) {
		if fact[1] != "" {
			fmt.Fprintf(columns, "%s:\t%s\n", fact[0], fact[1])
		}
	}
	_ = columns.Flush() // the output keeps its first error
}

// orDash stands in for what is empty, so that columns keep their places.
func orDash(s string) string { return cmp.Or(s, "-") }

// dashUnless stands in for what is not known, or not there.
func dashUnless(ok bool, s string) string {
	if !ok {
		return "-"
	}
	return s
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func percent(part, whole int64) string {
	if whole <= 0 {
		return "0 %"
	}
	return fmt.Sprintf("%.0f %%", 100*float64(part)/float64(whole))
}
