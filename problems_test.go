package storage_test

import (
	"errors"
	"io"
	"testing"

	storage "github.com/storaged/storaged"
)

func TestProblems(t *testing.T) {
	var p storage.Problems
	p.Check(true, "not said")
	p.Add(nil)
	if err := p.Err("configure", "node"); err != nil {
		t.Errorf("without problems: %v", err)
	}
	p.Check(false, "%d is odd", 3)
	p.Add(io.EOF)
	err := p.Err("configure", "node")
	if want := "configure node: 3 is odd\nEOF"; err == nil || err.Error() != want || !errors.Is(err, storage.ErrInvalid) || !errors.Is(err, io.EOF) {
		t.Errorf("got %v of kind %v, want %q", err, storage.KindOf(err), want)
	}
}
