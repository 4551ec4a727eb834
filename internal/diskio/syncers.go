package diskio

import (
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Syncers syncs files for many goroutines, each by a Syncer that is not in use. The zero value is ready; Close frees what it holds.
type Syncers struct {
	mu     sync.Mutex
	idle   []*Syncer
	closed bool
}

// SyncData is Syncer.SyncData.
func (s *Syncers) SyncData(f vfs.File) error {
	one := s.take()
	defer s.giveBack(one)
	return one.SyncData(f)
}

// Sync is Syncer.Sync.
func (s *Syncers) Sync(f vfs.File) error {
	one := s.take()
	defer s.giveBack(one)
	return one.Sync(f)
}

// SyncDir is Syncer.SyncDir.
func (s *Syncers) SyncDir(fs vfs.FS, dir string) error {
	one := s.take()
	defer s.giveBack(one)
	return one.SyncDir(fs, dir)
}

func (s *Syncers) take() *Syncer {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := len(s.idle) - 1
	if last < 0 {
		return new(Syncer)
	}
	one := s.idle[last]
	s.idle = s.idle[:last]
	return one
}

func (s *Syncers) giveBack(one *Syncer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || one.refused { // the kernel may have room for another one later
		one.Close()
		return
	}
	s.idle = append(s.idle, one)
}

// Close frees what is not in use, and the rest when its sync has ended.
func (s *Syncers) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, one := range s.idle {
		one.Close()
	}
	s.idle = nil
}
