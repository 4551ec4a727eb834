package control

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/noroom"
	"github.com/storaged/storaged/replication/runner"
)

// disk stands between the library and its log and votes. The library panics when they fail in its own goroutines, so it never
// gets an error. After the first error the disk is failed for good, and nothing is tried on it again. The library's goroutines
// wait in it until the Controller is closed. So nothing is acknowledged that is not known to be durable, and the node stops
// with an error instead of a panic.
//
// A write that finds no space is not such an error: the disk took no part of it, and bbolt has undone the transaction. It is
// repeated until there is space, and the library's goroutine waits here meanwhile: this node neither follows nor votes, and the
// others go on. A leader must not wait here: its heartbeats come from other goroutines, so the others would go on following it.
// It refuses what it was to store, and therefore steps down. A change of members cannot be refused (StoreLogs). It fails the
// disk for lack of space, and the node begins again from its log; changeCatalog makes this rare.
type disk struct {
	log    raft.LogStore
	stable raft.StableStore
	inst   *runner.Instance
	once   sync.Once
	err    error         // set once, before failed is closed
	failed chan struct{} // closed by fail
	// onFailure is told once, from a goroutine of the library; it must not block.
	onFailure func(error)
	logger    *slog.Logger

	closing chan struct{} // closed by stopWaiting: nobody waits for room any more
	waiting atomic.Int32  // operations that wait for room
	refused atomic.Int64  // when a leader last found none; Unix nanoseconds
}

const (
	// roomRetry is how long nothing is tried again after a write found no room.
	roomRetry = time.Second
	// refusedFor is how long a refusal says that there is no room. A leader by itself is elected again within it, and refuses again.
	refusedFor = 10 * time.Second
)

var (
	_ raft.LogStore    = (*disk)(nil)
	_ raft.StableStore = (*disk)(nil)
)

func newDisk(s *RaftStores, inst *runner.Instance, onFailure func(error), logger *slog.Logger) *disk {
	return &disk{log: s.Log, stable: s.Stable, inst: inst, failed: make(chan struct{}), onFailure: onFailure,
		logger: logger, closing: make(chan struct{})}
}

// noRoom reports whether a write was refused because the file system, or what this user may have of it, is full, or bbolt could not make
// its file longer. A sync that reports a full file system is not such an error; bbolt returns it without the operation.
func noRoom(err error) bool {
	var p *fs.PathError
	return errors.As(err, &p) && p.Op == "write" && noroom.Is(err) || unresized(err)
}

// notResized is how bbolt begins an error of the call that makes its file longer, before it writes a transaction. It keeps the text only.
const notResized = "file resize error: "

// unresized reports whether bbolt found no room to make its file longer: some file systems, as btrfs, refuse that. Nothing is written then.
func unresized(err error) bool {
	return err != nil && strings.HasPrefix(err.Error(), notResized) &&
		(strings.HasSuffix(err.Error(), syscall.ENOSPC.Error()) || strings.HasSuffix(err.Error(), syscall.EDQUOT.Error()))
}

// withoutRoom reports whether what was to be stored found no room, lately as far as is known.
func (d *disk) withoutRoom() bool {
	return d.waiting.Load() > 0 || time.Since(time.Unix(0, d.refused.Load())) < refusedFor
}

// stopWaiting fails the disk if anybody waits for room, so that what waits can end.
func (d *disk) stopWaiting() {
	close(d.closing)
	if d.waiting.Load() > 0 {
		d.fail(storage.E("use", storage.KindNoSpace, "catalog", errFull))
	}
}

var errFull = errors.New("there is no room for the catalog's log on the file system of the data directory")

// await repeats op, which has found no room, until it finds some or the node closes.
func (d *disk) await(op func() error, err error) error {
	if d.waiting.Add(1) == 1 {
		d.logger.Warn("no room for the catalog's log: this node waits for it, and neither follows nor votes; make room on its file system", "error", err)
	}
	defer d.waiting.Add(-1)
	for noRoom(err) {
		select {
		case <-time.After(roomRetry):
			err = op()
		case <-d.closing:
			return storage.E("use", storage.KindNoSpace, "catalog", err)
		}
	}
	if err == nil {
		d.logger.Info("there is room for the catalog's log again")
	}
	return err
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
	return d.run(d.failure(), func() error {
		err := op()
		if noRoom(err) && d.inst.Running() {
			err = d.await(op, err)
		}
		return err
	})
}

// read runs an operation that reads, also after a write has failed: the goroutines of the library that replicate would
// not end in order if they were held here.
func (d *disk) read(op func() error) error { return d.run(nil, op) }

func (d *disk) run(err error, op func() error) error {
	if err == nil {
		err = op()
		if err == nil || errors.Is(err, errRefused) || errors.Is(err, raft.ErrLogNotFound) || err.Error() == raftboltdb.ErrKeyNotFound.Error() {
			return err
		}
		kind := storage.KindIO
		switch {
		case errors.Is(err, storage.ErrCorrupt):
			kind = storage.KindCorrupt
		case errors.Is(err, storage.ErrNoSpace):
			kind = storage.KindNoSpace
		}
		d.fail(storage.E("use", kind, "catalog", err))
	}
	return d.inst.Park(err)
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
	return d.do(func() error {
		err := d.log.StoreLogs(sealed)
		if noRoom(err) && d.inst.Leads() && slices.ContainsFunc(ls, func(l *raft.Log) bool { return l.Type == raft.LogConfiguration }) {
			// The library still uses it as its configuration while the process runs. If the next change were made on top of it,
			// two changes would take effect at once, and there could be two majorities without a common member.
			return storage.E("store a change of members in", storage.KindNoSpace, "catalog", errFull)
		}
		if noRoom(err) && d.inst.Leads() {
			d.logger.Warn("no room for the catalog's log: this node gives up its leadership; make room on its file system", "error", err)
			d.refused.Store(time.Now().UnixNano())
			return errRefused
		}
		return err
	})
}

// errRefused is a leader's answer to commands that find no room.
var errRefused error = storage.E("store command in", storage.KindNoSpace, "catalog", errFull)

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
