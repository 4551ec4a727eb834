package control

import (
	"runtime"
	"testing"
	"time"

	"github.com/storaged/storaged/server/catalog"
)

// TestConfigIndexWithinAView: who decides on a view asks where the newest configuration lies, also while a command waits for the view
// to end. Line: fsm.config is no part of what the lock guards.
func TestConfigIndexWithinAView(t *testing.T) {
	f := newFSM()
	f.noteConfig(7)
	f.noteConfig(3)
	applied := make(chan struct{})
	f.view(func(*catalog.State) {
		go func() {
			defer close(applied)
			f.mu.Lock() // as Apply does
			defer f.mu.Unlock()
		}()
		for f.mu.TryRLock() { // until it waits
			f.mu.RUnlock()
			runtime.Gosched()
		}
		got := make(chan uint64, 1)
		go func() { got <- f.config.Load() }()
		select {
		case index := <-got:
			if index != 7 {
				t.Errorf("the newest configuration lies at %d, want 7", index)
			}
		case <-time.After(10 * time.Second):
			t.Error("asking waits for the command, which waits for the view")
		}
	})
	<-applied
}
