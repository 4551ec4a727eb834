package diskio

import (
	"sync"
	"testing"
)

// TestSyncers: goroutines sync files at once, each by a syncer of its own, which the next one uses again; Close frees all, and what is synced
// after it is synced, too.
func TestSyncers(t *testing.T) {
	var s Syncers
	var work sync.WaitGroup
	const goroutines = 4
	for range goroutines {
		f := realFile(t)
		work.Go(func() {
			for range 20 {
				if _, err := f.WriteAt(make([]byte, page), 0); err != nil {
					t.Error(err)
				}
				if err := s.SyncData(f); err != nil {
					t.Error(err)
				}
				if err := s.Sync(f); err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	all := s.idle
	if n := len(all); n == 0 || n > goroutines {
		t.Errorf("%d syncers for %d goroutines", n, goroutines)
	}
	for _, one := range all {
		if one.refused || one.event == nil || one.counter == [8]byte{} { // I1: what is not waited for is not durable
			t.Error("the kernel has AIO, but a file was synced without, or the end of its sync was not waited for")
		}
	}
	s.Close()
	f := realFile(t)
	if err := s.SyncData(f); err != nil {
		t.Error(err)
	}
	for _, one := range append(all, s.idle...) {
		if one.event != nil {
			t.Error("a syncer is not closed")
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.SyncData(f); err == nil {
		t.Error("a closed file was synced")
	}
}
