//go:build linux

package attach

import (
	"os"
	"testing"
)

// Whoever connects while the keeper ends is sent away, to the next one: what it gave to this one to keep would be lost. The
// line is the one in enter that looks at ends.
func TestKeeperEnds(t *testing.T) {
	k := &keeper{held: map[string]*os.File{}, idle: make(chan struct{}, 1)}
	if !k.enter() || k.mayEnd() {
		t.Fatal("a keeper with a connection ends, or lets nobody in")
	}
	k.leave()
	k.held["a"] = nil
	if k.mayEnd() || !k.enter() {
		t.Fatal("a keeper that holds something ends")
	}
	k.leave()
	delete(k.held, "a")
	if !k.mayEnd() || k.enter() {
		t.Fatal("a keeper that ends lets somebody in")
	}
}
