package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

// TestBar: a bar is as wide as it is meant to be, whatever it shows, and each part has its share of it.
func TestBar(t *testing.T) {
	for _, c := range []struct {
		parts []part
		want  string
	}{
		{[]part{{'#', 50}, {'%', 25}, {' ', 15}, {'r', 10}}, "[##########%%%%%   rr]"},
		{[]part{{'#', 1}, {'%', 1}, {'t', 1}}, "[#######%%%%%%ttttttt]"},
		{[]part{{'#', 0}, {'o', 100}}, "[oooooooooooooooooooo]"},
		{[]part{{'#', 0}}, "[                    ]"},
		{[]part{{'#', 1 << 62}, {'r', 1}}, "[####################]"},
	} {
		if got := drawBar(c.parts, 20); got != c.want {
			t.Errorf("%v: %s, want %s", c.parts, got, c.want)
		}
	}
}

// TestPartsAreTheWhole: what a bar shows of a store adds up to what its report says, the reserve once.
func TestPartsAreTheWhole(t *testing.T) {
	for _, unused := range []int64{0, 3, 9, 100} {
		s := api.Store{StoreSpace: storage.StoreSpace{LogBytes: 40, LiveBytes: 20, GarbageBytes: 15, TableBytes: 5, OtherBytes: 7, UnusedBytes: unused, ReserveBytes: 9}}
		sum := int64(0)
		for _, p := range parts([]api.Store{s, s}) {
			sum += p.bytes
		}
		if want := 2 * (40 + 5 + 7 + unused); sum != want {
			t.Errorf("%d unused: the parts are %d, want %d", unused, sum, want)
		}
	}
}

// TestBarsAreForTerminals: a person sees them, and a program that reads columns does not.
func TestBarsAreForTerminals(t *testing.T) {
	r := newRig(t)
	r.scene("filling")
	for _, command := range []string{"node list", "node show b"} {
		args := strings.Fields(command)
		if out := r.must(args...); strings.Contains(out, "[#") {
			t.Errorf("%s, not at a terminal:\n%s", command, out)
		}
		out := r.runWith(func(a *app) { a.outTerminal = true }, args...).out
		if !strings.Contains(out, "[####") || !strings.Contains(out, "92 GiB") {
			t.Errorf("%s, at a terminal:\n%s", command, out)
		}
		for _, line := range strings.Split(out, "\n") {
			if i, j := strings.Index(line, "["), strings.LastIndex(line, "]"); i >= 0 && j-i != map[string]int{"node list": listBar, "node show b": showBar}[command]+1 {
				t.Errorf("%s: a bar of %d characters: %s", command, j-i, line)
			}
		}
	}
}

// TestManyCompact: a line names a few nodes, and how many more there are.
func TestManyCompact(t *testing.T) {
	var s api.Status
	for i := range maxCompacting + 2 {
		s.Compacting = append(s.Compacting, api.StoreRoom{NodeName: fmt.Sprint(i), Compaction: storage.CompactionBraked})
	}
	s.Compacting[0].Compaction = storage.CompactionRunning
	want := "node 0, node 1 (braked), node 2 (braked), node 3 (braked), node 4 (braked), and 2 more"
	if got := describeCompacting(s); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestOperationsOfAFullDisk: what docs/operations.md shows of a full disk is what the commands print, and each command that it gives
// is one that works.
func TestOperationsOfAFullDisk(t *testing.T) {
	text, err := os.ReadFile(filepath.FromSlash("../../docs/operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	session, err := os.ReadFile("testdata/space.txt")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## A full disk\n")
	section, _, _ = strings.Cut(section, "\n## ")
	shown, commands := 0, 0
	for i, block := range strings.Split(section, "\n```") {
		switch kind, body, _ := strings.Cut(block, "\n"); {
		case i%2 == 0: // prose
		case kind == "text":
			shown++
			if !bytes.Contains(session, []byte(body+"\n")) {
				t.Errorf("no command of testdata/space.txt prints this:\n%s", body)
			}
		case kind == "promql":
		case kind == "sh":
			for line := range strings.Lines(body) {
				line, _, _ = strings.Cut(strings.TrimSpace(line), " #")
				args, ok := strings.CutPrefix(line, "storagectl ")
				if !ok {
					continue
				}
				commands++
				r := newRig(t)
				r.scene("filling")
				r.create("web", 1<<30)
				if got := r.run(strings.Fields(args)...); got.code != 0 {
					t.Errorf("%s: exit code %d\n%s", line, got.code, got.err)
				}
			}
		default:
			t.Errorf("a block of kind %q", kind)
		}
	}
	if shown < 2 || commands < 4 {
		t.Errorf("the section shows %d outputs and %d commands: it was not read", shown, commands)
	}
}
