package control

import (
	"encoding/binary"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	storage "github.com/storaged/storaged"
)

// disk stands between the library and its log and votes. The library panics when they fail in its own goroutines, so
// there is no error for it: after the first the disk is failed for good, nothing is tried on it again, and the library's
// goroutines wait in it until the Controller is closed. What is not known to be durable is thus never acknowledged, and
// the node stops with an error instead of a panic.
type disk struct {
	log    raft.LogStore
	stable raft.StableStore
	// running: errors concern the library's goroutines, not the ones that open the catalog.
	running  atomic.Bool
	once     sync.Once
	err      error         // set once, before failed is closed
	failed   chan struct{} // closed by fail
	released chan struct{} // closed by Controller.Close, when Raft was told to shut down
	// onFailure is told once, from a goroutine of the library; it must not block.
	onFailure func(error)
}

var (
	_ raft.LogStore    = (*disk)(nil)
	_ raft.StableStore = (*disk)(nil)
)

func newDisk(s *RaftStores, onFailure func(error)) *disk {
	return &disk{log: s.Log, stable: s.Stable, failed: make(chan struct{}), released: make(chan struct{}), onFailure: onFailure}
}

// failure returns why the disk is out of service; nil while it is in service.
func (d *disk) failure() error {
	select {
	case <-d.failed:
		return d.err
	default:
		return nil
	}
}

// do runs one operation that writes. An error that says "there is none" is an answer.
func (d *disk) do(op func() error) error {
	return d.run(d.failure(), op)
}

// read runs an operation that reads, also after a write has failed: the goroutines of the library that replicate would
// not end in order if they were held here.
func (d *disk) read(op func() error) error { return d.run(nil, op) }

func (d *disk) run(err error, op func() error) error {
	if err == nil {
		err = op()
		if err == nil || errors.Is(err, raft.ErrLogNotFound) || err.Error() == raftboltdb.ErrKeyNotFound.Error() {
			return err
		}
		kind := storage.KindIO
		if errors.Is(err, storage.ErrCorrupt) {
			kind = storage.KindCorrupt
		}
		d.fail(storage.E("use", kind, "catalog", err))
	}
	if !d.running.Load() {
		return err
	}
	<-d.released
	runtime.Goexit() // of a goroutine of the library, whose deferred calls say that it has ended
	return err
}

// fail takes the disk out of service for good, because of its first error or of what was read from it.
func (d *disk) fail(err error) {
	d.once.Do(func() {
		d.err = err
		close(d.failed)
		d.onFailure(err)
	})
}

// FirstIndex implements raft.LogStore.
func (d *disk) FirstIndex() (i uint64, err error) {
	err = d.read(func() (err error) { i, err = d.log.FirstIndex(); return err })
	return i, err
}

// LastIndex implements raft.LogStore.
func (d *disk) LastIndex() (i uint64, err error) {
	err = d.read(func() (err error) { i, err = d.log.LastIndex(); return err })
	return i, err
}

// GetLog implements raft.LogStore.
func (d *disk) GetLog(index uint64, l *raft.Log) error {
	return d.read(func() error {
		if err := d.log.GetLog(index, l); err != nil {
			return err
		}
		return unsealEntry(index, l)
	})
}

// StoreLog implements raft.LogStore.
func (d *disk) StoreLog(l *raft.Log) error { return d.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (d *disk) StoreLogs(ls []*raft.Log) error {
	sealed := make([]*raft.Log, len(ls))
	for i, l := range ls {
		sealed[i] = sealEntry(l)
	}
	return d.do(func() error { return d.log.StoreLogs(sealed) })
}

// DeleteRange implements raft.LogStore.
func (d *disk) DeleteRange(from, to uint64) error {
	return d.do(func() error { return d.log.DeleteRange(from, to) })
}

// Set implements raft.StableStore.
func (d *disk) Set(key, val []byte) error {
	return d.do(func() error { return d.stable.Set(key, sealValue(key, val)) })
}

// Get implements raft.StableStore.
func (d *disk) Get(key []byte) (v []byte, err error) {
	err = d.read(func() (err error) {
		if v, err = d.stable.Get(key); err == nil {
			v, err = unsealValue(key, v)
		}
		return err
	})
	return v, err
}

// SetUint64 implements raft.StableStore.
func (d *disk) SetUint64(key []byte, val uint64) error {
	return d.Set(key, binary.BigEndian.AppendUint64(nil, val))
}

// GetUint64 implements raft.StableStore.
func (d *disk) GetUint64(key []byte) (v uint64, err error) {
	err = d.read(func() error {
		b, err := d.stable.Get(key)
		if err == nil {
			v, err = unsealNumber(key, b)
		}
		return err
	})
	return v, err
}
