package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/storaged/storaged/api/host"
)

func TestDocumentIsUpToDate(t *testing.T) {
	const path = "../../docs/storagectl.md"
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	writeMarkdown(&got, newRoot(newRig(t).app(&got, &got)))
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("%s is not what the help says (-file +help; 'go generate ./cmd/storagectl' writes it):\n%s", path, diff)
	}
}

// Every command says what it does, documents its flags, and completes its arguments.
func TestHelpIsComplete(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: its short text is %q", c.CommandPath(), c.Short)
		}
		for line := range strings.Lines(c.Long) {
			if len(line) > 122 && c.Name() != "completion" && c.Parent().Name() != "completion" {
				t.Errorf("%s: a line of its help has %d characters: %s", c.CommandPath(), len(line), line)
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	var out bytes.Buffer
	walk(newRoot(newRig(t).app(&out, &out)))
}

func TestManualPages(t *testing.T) {
	r, dir := newRig(t), t.TempDir()
	r.must("docs", "man", filepath.Join(dir, "man1"))
	page, err := os.ReadFile(filepath.Join(dir, "man1", "storagectl-volume-import.1"))
	if err != nil || !bytes.Contains(page, []byte(`\-\-checksum`)) && !bytes.Contains(page, []byte("--checksum")) {
		t.Errorf("the page of volume import: %v\n%s", err, page)
	}
	again := filepath.Join(dir, "again")
	r.must("docs", "man", again)
	if second, err := os.ReadFile(filepath.Join(again, "storagectl-volume-import.1")); err != nil || !bytes.Equal(page, second) {
		t.Errorf("pages differ from run to run (%v)", err)
	}
	file := filepath.Join(dir, "new", "help.md")
	r.must("docs", "markdown", file)
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}

func TestCompletionScripts(t *testing.T) {
	r := newRig(t)
	r.env["STORAGECTL_CONFIG"] = "/nonexistent" // scripts are written whatever the settings
	for shell, want := range map[string]string{"bash": "complete -o", "zsh": "#compdef storagectl", "fish": "complete -c storagectl"} {
		if got := r.must("completion", shell); !strings.Contains(got, want) || !strings.Contains(got, "__complete") {
			t.Errorf("the script for %s does not look like one: %.200s", shell, got)
		}
	}
}

// TestCommandsOfTheRunbook: every command of storagectl in docs/runbook.md exists, with its flags and as many arguments.
func TestCommandsOfTheRunbook(t *testing.T) {
	book, err := os.ReadFile("../../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for line := range strings.Lines(string(book)) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "storagectl" {
			continue
		}
		found++
		c, rest, err := newRoot(newApp(strings.NewReader(""), io.Discard, io.Discard)).Find(words[1:])
		if err == nil {
			err = c.ParseFlags(rest)
		}
		if err == nil {
			err = c.ValidateArgs(c.Flags().Args())
		}
		if err != nil || !c.Runnable() || c.HasSubCommands() {
			t.Errorf("%s: %v", strings.TrimSpace(line), err)
		}
	}
	if found < 20 {
		t.Errorf("%d commands were found: the pattern is wrong", found)
	}
}

// Programs depend on the names and types of all fields: testdata/schema.txt only ever grows.
func TestSchemaIsStable(t *testing.T) {
	var got strings.Builder
	for _, v := range []struct {
		name  string
		value any
	}{
		{"volume", volumeView{}}, {"node", nodeView{}}, {"node plan", planView{}}, {"group", groupView{}}, {"status", statusView{}},
		{"version", versionView{}}, {"transfer", transferView{}}, {"bench", benchView{}}, {"error", errorView{}}, {"host attachment", host.Attachment{}},
		{"catalog backup", backupView{}}, {"catalog", catalogView{}}, {"verification", verifyView{}}, {"event", eventView{}},
	} {
		describe(&got, v.name, reflect.TypeOf(v.value))
	}
	const path = "testdata/schema.txt"
	want, err := os.ReadFile(path)
	if err != nil && !*update {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(want)) {
		if !strings.Contains(got.String(), line) {
			t.Errorf("a field that programs may use is gone: %s", line)
		}
	}
	if *update && !t.Failed() {
		if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("the schema changed (-want +got; added fields are taken in with -update):\n%s", diff)
	}
}

func describe(w *strings.Builder, path string, typ reflect.Type) {
	optional := ""
	for typ.Kind() == reflect.Pointer {
		typ, optional = typ.Elem(), ", may be left out"
	}
	switch {
	case typ.String() == "time.Time":
		fmt.Fprintf(w, "%s: time%s\n", path, optional)
	case typ.Kind() == reflect.Struct:
		for i := range typ.NumField() {
			name, rest, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			if strings.Contains(rest, "omitempty") && typ.Field(i).Type.Kind() != reflect.Pointer {
				name += "?"
			}
			of := typ.Field(i).Type
			if name == "-" {
				continue
			}
			if strings.Contains(rest, "omitzero") { // printed like a pointer
				of = reflect.PointerTo(of)
			}
			describe(w, path+"."+name, of)
		}
	case typ.Kind() == reflect.Slice:
		describe(w, path+"[]", typ.Elem())
	default:
		fmt.Fprintf(w, "%s: %s%s\n", path, typ.Kind(), optional)
	}
}
