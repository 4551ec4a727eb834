package powercut

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func newFile(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// TestCut: what was written before a flush began is there once it is over; of the rest nothing, or what chance leaves.
func TestCut(t *testing.T) {
	trace, image := NewTrace(newFile(t, "trace")), newFile(t, "medium")
	const size = 4 * pageBytes
	disk, err := NewDisk(trace, 0, newFile(t, "disk"), size, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	write := func(fill byte, page int64) {
		if err := disk.WriteAt(t.Context(), bytes.Repeat([]byte{fill}, pageBytes), page*pageBytes); err != nil {
			t.Fatal(err)
		}
	}
	write('a', 0)
	synctest.Test(t, func(t *testing.T) {
		over := make(chan error)
		go func() { over <- disk.Flush(context.WithoutCancel(t.Context())) }()
		synctest.Wait()
		write('b', 1) // while the flush goes on: not covered
		if err := <-over; err != nil {
			t.Fatal(err)
		}
	})
	write('c', 2)
	if err := disk.WriteZeroes(t.Context(), 0, pageBytes, false); err != nil {
		t.Fatal(err)
	}
	if n := trace.Unflushed(trace.Now()); n != 3 {
		t.Errorf("%d writes are not flushed, want 3", n)
	}
	medium, err := NewMedium(trace, 0, image, size, never)
	if err != nil {
		t.Fatal(err)
	}
	pages := func(point int, fate Fate, seed uint64) string {
		cut, err := medium.Cut(point, fate, rand.New(rand.NewPCG(seed, 0)))
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, size)
		if err := cut.ReadAt(t.Context(), p, 0); err != nil {
			t.Fatal(err)
		}
		var all strings.Builder
		for at := 0; at < size; at += sectorBytes {
			all.WriteByte(max(p[at], '0'))
		}
		return all.String()
	}
	row := strings.Repeat
	if got, want := pages(2, Lost, 0), row("0", 32); got != want {
		t.Errorf("before the flush was over: %s, want %s", got, want)
	}
	if got, want := pages(trace.Now(), Lost, 0), row("a", 8)+row("0", 24); got != want {
		t.Errorf("all that was not flushed is lost: %s, want %s", got, want)
	}
	some, torn := map[string]bool{}, 0
	for seed := range uint64(100) {
		some[pages(trace.Now(), Some, seed)] = true
		if p := pages(trace.Now(), Torn, seed)[8:16]; p != row("0", 8) && p != row("b", 8) {
			torn++
		}
	}
	if len(some) != 8 || !some["00000000bbbbbbbbcccccccc00000000"] || !some["aaaaaaaa000000000000000000000000"] {
		t.Errorf("of three writes each is there or not: %v", some)
	}
	if torn < 50 {
		t.Errorf("%d of 100 times a write was torn", torn)
	}
}

// TestCheck: a sector must hold the last write that was acknowledged before the cut, or one that was asked for since.
func TestCheck(t *testing.T) {
	h := NewHistory(8 * sectorBytes)
	one := h.Ask(0, 4, false, 10)
	h.Acknowledge(one, 20)
	two := h.Ask(2, 4, true, 30)
	h.Acknowledge(two, 40)
	three := h.Ask(2, 1, false, 50)
	zeroes := make([]byte, sectorBytes)
	for _, c := range []struct {
		what   string
		sector int64
		holds  []byte
		point  int
		ok     bool
	}{
		{"never written", 7, zeroes, 100, true},
		{"not acknowledged, not there", 0, zeroes, 15, true},
		{"not acknowledged, there", 0, one.Stamp(0, 1), 15, true},
		{"not asked for, there", 0, one.Stamp(0, 1), 5, false},
		{"acknowledged, not there", 0, zeroes, 20, false},
		{"acknowledged, there", 1, one.Stamp(1, 1), 20, true},
		{"another sector's bytes", 1, one.Stamp(0, 1), 20, false},
		{"torn", 1, append(one.Stamp(1, 1)[:100:100], zeroes[100:]...), 20, false},
		{"zeroed", 3, zeroes, 40, true},
		{"zeroed, and not there", 3, one.Stamp(3, 1), 40, false},
		{"zeroed, not yet acknowledged", 3, one.Stamp(3, 1), 39, true},
		{"asked for since", 2, three.Stamp(2, 1), 50, true},
		{"asked for since, and not there", 2, zeroes, 60, true},
		{"older than the last acknowledged", 2, one.Stamp(2, 1), 60, false},
	} {
		if err := h.Check(c.sector, c.holds, c.point); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}
