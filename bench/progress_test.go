package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestProgress: a step says how far it is, how fast, and what is left, on a terminal in one line that is gone at the end, elsewhere twice a
// minute; one that is short says nothing there. A step in a step is a part of it.
//
// Guards, in progress.go: both ends of toldEvery and rewrittenEvery in tell, the escape in begin's end, what line makes of a share of nothing, and
// begin's look for a step that is on. Each was taken out once, and failed here.
func TestProgress(t *testing.T) {
	for _, test := range []struct {
		terminal bool
		want     []string // in this order, and nothing else
	}{
		{false, []string{
			"  overwriting: for 30s, 15 %, w=63.0MiB/s, about 2m50s more\n",
			"  overwriting: for 1m0s, 50 %, w=63.0MiB/s, about 1m0s more\n",
			"  waiting: for 30s, w=1.0MiB/s\n",
		}},
		{true, []string{"\roverwriting: for 1s\x1b[K", "\roverwriting: for 30s, 15 %, w=63.0MiB/s, about 2m50s more\x1b[K",
			"\roverwriting: for 1m0s, 50 %, w=63.0MiB/s, about 1m0s more\x1b[K", "\r\x1b[K", "\rwaiting: for 30s, w=1.0MiB/s\x1b[K", "\r\x1b[K"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			var said strings.Builder
			p := &progress{w: &said, terminal: test.terminal}
			half := time.Second / 2
			end := p.begin("overwriting", 2)
			time.Sleep(20*time.Second + half)
			fio := fioProgress{p}
			inner := p.begin("fio", 7)
			if _, err := fio.Write([]byte("Jobs: 1 (f=1), 0B/s-20.0MiB/s\rJobs: 1 (f=1): [w(1)][30.0%][w=63.0MiB/s][w=16.1k IOPS][eta 00m:10s]\r")); err != nil {
				t.Error(err)
			}
			time.Sleep(20 * time.Second)
			inner()
			p.ended()
			time.Sleep(20 * time.Second)
			end()
			p.begin("short", 1)()
			end = p.begin("waiting", 0)
			p.ended()
			if _, err := fio.Write([]byte("Jobs: 1 (f=1): [w(1)][0.1%][w=1.0MiB/s][w=9 IOPS][eta 23h:59m:00s]\r")); err != nil {
				t.Error(err)
			}
			time.Sleep(30*time.Second + half)
			end()
			rest := said.String()
			for _, want := range test.want {
				i := strings.Index(rest, want)
				if i < 0 {
					t.Fatalf("terminal %v: %q is not said in\n%q", test.terminal, want, said.String())
				}
				rest = rest[i+len(want):]
			}
			if lines := strings.Count(said.String(), "\n"); !test.terminal && lines != len(test.want) || test.terminal && lines > 0 {
				t.Errorf("terminal %v: %d lines:\n%s", test.terminal, lines, said.String())
			}
		})
	}
}

// TestNoProgress: who is not to be told anything needs no progress.
func TestNoProgress(t *testing.T) {
	p := progressOf(context.Background())
	end := p.begin("step", 1)
	p.note(0.5, "fast")
	p.ended()
	end()
}

// TestFioTellsBothWays: fio writes its progress where it is read, and its result where that is read, with what it notes before. A stand-in for it
// does as fio 3.33 does with --output and --eta=always.
func TestFioTellsBothWays(t *testing.T) {
	dir := t.TempDir()
	script := `#!/bin/sh
out=
for a in "$@"; do case "$a" in --output=*) out=${a#--output=};; esac; done
echo "Jobs: 1 (f=1): [w(1)][40.0%][w=10.0MiB/s][w=5 IOPS][eta 00m:10s]"
printf 'note: something\n{"jobs": []}' > "$out"
[ "$1" != --fail ] || { echo "it was refused" >> "$out"; exit 1; }
`
	if err := os.WriteFile(filepath.Join(dir, "fio"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	p := &progress{w: &strings.Builder{}}
	end := p.begin("outside", 2)
	defer end()
	ctx := context.WithValue(t.Context(), progressKey{}, p)
	out, err := fio(ctx, "a run", []string{"--name=x"})
	if err != nil || string(out) != "note: something\n{\"jobs\": []}" || p.step.done != 1 {
		t.Errorf("%q, %v, %+v", out, err, p.step)
	}
	if _, err := fio(ctx, "a run", []string{"--fail"}); err == nil || !strings.Contains(err.Error(), "it was refused") {
		t.Errorf("%v", err)
	}
}
