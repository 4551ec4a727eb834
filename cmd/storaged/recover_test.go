package main

import (
	"os"
	"strings"
	"testing"

	storage "github.com/storaged/storaged"
)

// TestCommandsOfTheRunbook: every command of storaged in docs/runbook.md exists, with its flags.
func TestCommandsOfTheRunbook(t *testing.T) {
	book, err := os.ReadFile("../../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for line := range strings.Lines(string(book)) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "storaged" {
			continue
		}
		found++
		c, rest, err := rootCommand().Find(words[1:])
		if err == nil {
			err = c.ParseFlags(rest)
		}
		if err == nil {
			err = c.ValidateArgs(c.Flags().Args())
		}
		if err != nil {
			t.Errorf("%s: %v", strings.TrimSpace(line), err)
		}
	}
	if found < 5 {
		t.Errorf("%d commands were found: the pattern is wrong", found)
	}
}

// TestRecoverRefuses: what is no recovery is refused before anything is looked at.
func TestRecoverRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{{}, {"--data-dir", dir}, {"--data-dir", dir, "--follow", "12"}, {"--data-dir", dir, "--follow", "0000001f:2", "--lost", "b"},
		{"--data-dir", dir, "--lost", "b", "--dry-run", "--yes"}, {"--data-dir", dir, "--lost", "b", "--from", dir + "/none"}, {"surplus"}} {
		err := run(t.Context(), append([]string{"recover"}, args...), os.Stderr, os.Stderr)
		if exitCode(err) != 2 {
			t.Errorf("%q: %v", args, err)
		}
	}
	if err := run(t.Context(), []string{"recover", "--data-dir", dir, "--lost", "b", "--yes"}, os.Stderr, os.Stderr); storage.KindOf(err) != storage.KindNotFound {
		t.Errorf("an empty directory: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("something was made in it: %v, %v", left, err)
	}
}
