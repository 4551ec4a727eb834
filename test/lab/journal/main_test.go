package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// appendSome appends as a writer until a few records are synced, and returns how many the file holds then.
func appendSome(t *testing.T, writer byte, path string) (synced int) {
	t.Helper()
	status := filepath.Join(t.TempDir(), "status")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := appendAll(ctx, writer, path, status); err != nil {
		t.Fatal(err)
	}
	var ms int
	var failure string
	text, err := os.ReadFile(status)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(text), &synced, &ms, &failure); err != nil || failure != "-" || synced == 0 {
		t.Fatalf("the status is %q (%v)", text, err)
	}
	return synced
}

// TestJournal: a writer goes on behind the last whole record of another, and check tells them apart.
func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	first := appendSome(t, 'a', path)
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Write(record('a', uint64(first))[:100]); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	if err := check(path, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "within a record") {
		t.Errorf("half a record at the end: %v", err)
	}
	both := appendSome(t, 'b', path)
	var got bytes.Buffer
	if err := check(path, &got); err != nil || got.String() != fmt.Sprintf("a %d\nb %d\n", first, both-first) {
		t.Errorf("check says %q, %v; want %d records of a and %d of b", got.String(), err, first, both-first)
	}
}

// TestCheckFindsDamage: a record that is zero, old or of another place is damage.
func TestCheckFindsDamage(t *testing.T) {
	for name, bad := range map[string][]byte{"zeroes": make([]byte, recordBytes), "another record": record('a', 0)} {
		path := filepath.Join(t.TempDir(), "journal")
		if err := os.WriteFile(path, append(record('a', 0), bad...), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := check(path, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "record 1") {
			t.Errorf("%s in the place of record 1: %v", name, err)
		}
	}
}
