package tabledb

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/diskio"
	"github.com/storaged/storaged/internal/sched"
)

// closeTimeout is how long Close waits for a database that has failed, before it is abandoned.
const closeTimeout = time.Second

// formatMajorVersion is the version of Pebble's own formats. A build whose Pebble does not know it does not open the database any
// more. So it does not follow Pebble: it may be raised one release after the first whose Pebble knows the new one, and where
// builds may be mixed or taken back only by way of a format of the data directory (storedir.NewestFormat).
const formatMajorVersion = pebble.FormatValueSeparation

// tableFileShards is how many parts the open files of tables lie in, each with a lock of its own.
const tableFileShards = 4

// DB is the database of a store's tables. Pebble calls Logger.Fatalf for what it takes for fatal, and expects it not to
// return. So writes run in a goroutine of their own, which stays behind, parked, if that happens; whoever waits for it learns
// of the failure.
type DB struct {
	cfg Config
	db  *pebble.DB

	failOnce sync.Once
	failed   chan struct{} // closed by fail
	err      error         // set before failed is closed
	release  chan struct{} // closed by Close: parked goroutines end

	releaseOnce sync.Once
	space       shortage
	measured    measure

	mu     sync.RWMutex // guards closed; held for reading while the database is used
	closed bool
}

// Defaults of Config.
const (
	DefaultMemTableBytes   = 8 << 20
	DefaultBlockCacheBytes = 16 << 20
	DefaultTableFiles      = 256
)

// Config says where the database lies, and how much memory it may take. Zero values mean the defaults above.
type Config struct {
	// FS and Dir say where it lies. Nothing else may use Dir.
	FS  vfs.FS
	Dir string
	// MemTableBytes and BlockCacheBytes are Pebble's, TableFiles bounds the files of tables that it keeps open.
	MemTableBytes   int64
	BlockCacheBytes int64
	TableFiles      int
	// ReadOnly: the database must be there, and nothing is written.
	ReadOnly bool
	// OnFailure is called once, when the database has failed for good. It must not block nor call Close. May be nil.
	OnFailure func(error)
	// Logger is told what an operator would act on; nil: nothing.
	Logger *slog.Logger

	syncs syncing // nil: diskio.Syncers; tests count
	yield func()  // nil: sched.Yield; tests let it last
}

// syncing is how what Pebble writes is synced. No thread waits in it for the disk: each would hold up a processor of Go.
type syncing interface {
	Sync(vfs.File) error
	SyncData(vfs.File) error
	SyncDir(fs vfs.FS, dir string) error
	Close()
}

func (c *Config) setDefaults() {
	c.MemTableBytes = cmp.Or(c.MemTableBytes, DefaultMemTableBytes)
	c.BlockCacheBytes = cmp.Or(c.BlockCacheBytes, DefaultBlockCacheBytes)
	c.TableFiles = cmp.Or(c.TableFiles, DefaultTableFiles)
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	if c.OnFailure == nil {
		c.OnFailure = func(error) {}
	}
	if c.syncs == nil {
		c.syncs = new(diskio.Syncers)
	}
	if c.yield == nil {
		c.yield = sched.Yield
	}
}

// Open opens the database, or makes one. Until Opened is called nothing waits for room. Errors are of KindCorrupt,
// KindNoSpace and KindIO.
func Open(c Config) (*DB, error) {
	c.setDefaults()
	m := &DB{cfg: c, failed: make(chan struct{}), release: make(chan struct{}),
		space: shortage{logger: c.Logger, dir: c.Dir, stop: make(chan struct{})}}
	type result struct {
		db  *pebble.DB
		err error
	}
	done := make(chan result, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer m.recoverFailure()
		o := m.options()
		o.FileCache = pebble.NewFileCache(min(tableFileShards, c.TableFiles), c.TableFiles)
		defer o.FileCache.Unref() // the database has a reference of its own
		db, err := pebble.Open(c.Dir, o)
		done <- result{db, err}
	}()
	select {
	case <-ended:
	case <-m.failed:
		m.space.halt()
		m.releaseOnce.Do(func() { close(m.release) })
		await(ended, closeTimeout)
	}
	var r result
	select {
	case r = <-done:
	default: // Pebble has given up, or hangs: the database has failed
		r.err = m.err
	}
	if r.err != nil {
		c.syncs.Close()
		return nil, m.openError(r.err)
	}
	m.db = r.db
	if m.failure() != nil { // opened, but for what found no room
		_ = m.Close() // says why again
		return nil, m.openError(m.err)
	}
	return m, nil
}

func (m *DB) openError(err error) error {
	return storage.E("open tables", kindOf(err), m.cfg.Dir, err)
}

// Opened says that the store is open: from now on a write that finds no room waits for some, after makeRoom has given
// something else of the store back, if it can. The error says what has failed before and was not waited for.
func (m *DB) Opened(makeRoom func() bool) error {
	m.space.makeRoom = makeRoom
	m.space.opened.Store(true)
	if err := m.failure(); err != nil {
		return m.openError(err)
	}
	return nil
}

// Short reports that the tables want room which is not there.
func (m *DB) Short() bool { return m.space.short() }

// StopWaiting ends all waiting for room, now and later: what finds none is not on the disk, and fails the database.
func (m *DB) StopWaiting() { m.space.halt() }

// WaitingStopped reports whether StopWaiting or Close has been called.
func (m *DB) WaitingStopped() bool { return m.space.stopped() }

// await waits until done is closed, for a limited time.
func await(done <-chan struct{}, limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// options keeps Pebble small: the process has other uses for memory, and tables are a hundredth of the data.
func (m *DB) options() *pebble.Options {
	c := &m.cfg
	o := &pebble.Options{
		FS:                          metaFS{c.FS, m},
		ReadOnly:                    c.ReadOnly,
		ErrorIfNotExists:            c.ReadOnly,
		CacheSize:                   c.BlockCacheBytes,
		MemTableSize:                uint64(c.MemTableBytes),
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       24,
		FormatMajorVersion:          formatMajorVersion,
		DisableTableStats:           true,
		Logger:                      pebbleLogger{m},
		EventListener: &pebble.EventListener{
			BackgroundError: m.backgroundError,
			CompactionEnd: func(i pebble.CompactionInfo) {
				if i.Err == nil {
					m.space.compacted()
				}
			},
			DataCorruption: func(i pebble.DataCorruptionInfo) {
				c.Logger.Error("table file is damaged", "dir", c.Dir, "file", i.Path, "error", i.Details)
			},
		},
	}
	o.CompactionConcurrencyRange = func() (int, int) { return 1, 1 }
	// Without the timer of 100 ms that looks whether more compactions are allowed than before: there is always one, and
	// its end starts the next. The name is Pebble's; its tests are not the only ones that can do without.
	o.Experimental.CompactionScheduler = pebble.NewConcurrencyLimitSchedulerWithNoPeriodicGrantingForTest()
	for i := range o.TargetFileSizes {
		o.TargetFileSizes[i] = min(int64(2<<20)<<i, MaxTableFileBytes)
	}
	for i := range o.Levels {
		// Locations and checksums do not compress.
		o.Levels[i].Compression = func() *sstable.CompressionProfile { return sstable.NoCompression }
	}
	return o
}

// kindOf tells damage and a lack of room from a disk's refusal.
func kindOf(err error) storage.Kind {
	switch {
	case pebble.IsCorruptionError(err):
		return storage.KindCorrupt
	case diskio.NoSpace(err):
		return storage.KindNoSpace
	}
	return storage.KindIO
}

// backgroundError is told what went wrong in a flush or a compaction, which Pebble begins again, whatever it was. For a lack of
// room that is right. (If a sync reports it, metaFile has failed the database before.) But when the store closes, Pebble would
// go on for ever, and whoever waits for the flush with it: then the database fails. While the store is opened, it fails too.
func (m *DB) backgroundError(err error) {
	if diskio.NoSpace(err) && m.space.opened.Load() && !m.space.stopped() {
		m.space.giveUp(err)
		return
	}
	m.fail(err)
}

// fail marks the database failed for good.
func (m *DB) fail(err error) {
	m.failOnce.Do(func() {
		m.err = err
		if !diskio.NoSpace(err) || !m.space.stopped() { // a store that is closed while it waits for room has not failed
			m.cfg.OnFailure(err)
		}
		close(m.failed) // last: who sees the failure finds it reported
	})
}

// failure returns why the database has failed for good, or nil.
func (m *DB) failure() error {
	select {
	case <-m.failed:
		return m.err
	default:
		return nil
	}
}

// dead reports that the store is closed and its database has failed, or could not be written for want of room: nothing that
// is written from then on reaches the disk, as after a power cut.
func (m *DB) dead() bool { return m.space.stopped() && m.failure() != nil }

// recoverFailure turns a panic of Pebble, which it uses for errors of its log, into a failure.
func (m *DB) recoverFailure() {
	if p := recover(); p != nil {
		err, ok := p.(error)
		if !ok {
			err = fmt.Errorf("%v", p)
		}
		m.fail(err)
	}
}

// write runs fn, which commits to the database, and waits for it or for the failure of the database.
func (m *DB) write(fn func(*pebble.DB) error) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := m.usable(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		defer m.recoverFailure()
		done <- fn(m.db)
	}()
	select {
	case err := <-done:
		if err != nil {
			m.fail(err)
		}
	case <-m.failed:
	}
	if err := m.failure(); err != nil { // also if Pebble says that all is well: see metaFile.attempt
		return storage.E("write tables", kindOf(err), "", err)
	}
	return nil
}

func (m *DB) usable() error {
	if m.closed {
		return storage.E("use tables", storage.KindUnavailable, "", errors.New("the store is closed"))
	}
	if err := m.failure(); err != nil {
		return storage.E("use tables", storage.KindIO, "", err)
	}
	return nil
}

// Commit writes what fill puts into the batch, durably and as one.
func (m *DB) Commit(fill func(*Batch)) error { return m.commit(pebble.Sync, fill) }

// CommitNoSync writes a batch that the next Commit makes durable.
func (m *DB) CommitNoSync(fill func(*Batch)) error { return m.commit(pebble.NoSync, fill) }

func (m *DB) commit(o *pebble.WriteOptions, fill func(*Batch)) error {
	return m.write(func(db *pebble.DB) error {
		b := Batch{b: db.NewBatch()}
		defer b.b.Close()
		if fill(&b); b.err != nil {
			return b.err
		}
		return b.b.Commit(o)
	})
}

// Get returns a copy of the value, or nil without an error if there is none.
func (m *DB) Get(key []byte) ([]byte, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := m.usable(); err != nil {
		return nil, err
	}
	v, closer, err := m.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, storage.E("read tables", kindOf(err), "", err)
	}
	value := append(make([]byte, 0, len(v)), v...)
	return value, closer.Close()
}

// First returns copies of the first key not below from and below to, and of its value; ok is false if there is none.
func (m *DB) First(from, to []byte) (key, value []byte, ok bool, err error) {
	err = m.Scan(from, to, func(k, v []byte) (bool, error) {
		key, value, ok = append([]byte(nil), k...), append([]byte(nil), v...), true
		return false, nil
	})
	return key, value, ok, err
}

// Scan calls fn with the keys in [from, to), until it returns false or an error. fn must not keep the slices.
func (m *DB) Scan(from, to []byte, fn func(key, value []byte) (more bool, err error)) error {
	return m.scan(m.db, from, to, fn)
}

// scan is Scan on any reader: the database, or a snapshot of it.
func (m *DB) scan(r pebble.Reader, from, to []byte, fn func(key, value []byte) (more bool, err error)) error {
	return m.iterate(r, from, to, func(it *pebble.Iterator) error {
		_, err := each(it, it.First(), nil, fn)
		return err
	})
}

// Range is the keys in [From, To).
type Range struct{ From, To []byte }

// ScanRanges calls fn with the keys of all ranges as they are at one moment, and with the number of the range, until it returns an
// error. The ranges must be in ascending order and apart. It costs much less than a Scan of each: what of the tables was found for one range
// is where the search for the next begins. fn must not keep the slices.
func (m *DB) ScanRanges(ranges []Range, fn func(i int, key, value []byte) error) error {
	if len(ranges) == 0 {
		return nil
	}
	return m.iterate(m.db, ranges[0].From, ranges[len(ranges)-1].To, func(it *pebble.Iterator) error {
		for i, r := range ranges {
			valid, err := each(it, it.SeekGE(r.From), r.To, func(k, v []byte) (bool, error) { return true, fn(i, k, v) })
			if err != nil || !valid {
				return err
			}
		}
		return nil
	})
}

// each calls fn with the keys from where the iterator is and, unless that is nil, below to. It reports whether the iterator is still at a key.
func each(it *pebble.Iterator, valid bool, to []byte, fn func(key, value []byte) (more bool, err error)) (stillValid bool, err error) {
	for ; valid && (to == nil || bytes.Compare(it.Key(), to) < 0); valid = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return true, storage.E("read tables", kindOf(err), "", err)
		}
		if more, err := fn(it.Key(), value); err != nil || !more {
			return true, err
		}
	}
	return valid, nil
}

// iterate calls fn with an iterator over the keys in [from, to).
func (m *DB) iterate(r pebble.Reader, from, to []byte, fn func(*pebble.Iterator) error) (err error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := m.usable(); err != nil {
		return err
	}
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return storage.E("read tables", kindOf(err), "", err)
	}
	defer func() {
		if e := it.Close(); e != nil && err == nil {
			err = storage.E("read tables", kindOf(e), "", e)
		}
	}()
	return fn(it)
}

// Close closes the database. One that has failed is given closeTimeout and then abandoned.
func (m *DB) Close() error {
	m.space.halt()
	m.releaseOnce.Do(func() { close(m.release) })
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	defer m.cfg.syncs.Close()
	done := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("close tables: %v", p)
			}
		}()
		done <- m.db.Close()
	}()
	select {
	case err := <-done:
		if failure := m.failure(); failure != nil { // what Pebble says of it depends on when it failed
			return storage.E("close tables", kindOf(failure), "", failure)
		}
		return err
	case <-m.failed:
	}
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case _ = <-done:
	case <-timer.C:
		m.cfg.Logger.Warn("the tables of a failed disk could not be closed, their memory is lost until the process ends")
	}
	return storage.E("close tables", kindOf(m.err), "", m.err)
}

// pebbleLogger is Pebble's way to speak. What it says in passing is of no use to an operator.
type pebbleLogger struct{ m *DB }

func (l pebbleLogger) Infof(string, ...any) {}

func (l pebbleLogger) Errorf(format string, args ...any) {
	l.m.cfg.Logger.Warn("tables", "error", fmt.Sprintf(format, args...))
}

// Fatalf does not return and does not end the process: the disk is failed, and the caller waits for the store to be
// closed.
func (l pebbleLogger) Fatalf(format string, args ...any) {
	l.m.fail(fmt.Errorf(format, args...))
	<-l.m.release
	runtime.Goexit()
}

var _ pebble.Logger = pebbleLogger{}

// Snapshot is the database as it was at one moment. It must be closed before the database is.
type Snapshot struct {
	m *DB
	s *pebble.Snapshot
}

// Snapshot returns the database as it is now.
func (m *DB) Snapshot() (*Snapshot, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := m.usable(); err != nil {
		return nil, err
	}
	return &Snapshot{m, m.db.NewSnapshot()}, nil
}

// Scan is DB.Scan of the snapshot.
func (s *Snapshot) Scan(from, to []byte, fn func(key, value []byte) (more bool, err error)) error {
	return s.m.scan(s.s, from, to, fn)
}

// Close lets the snapshot go.
func (s *Snapshot) Close() { _ = s.s.Close() } // its only error is to be closed already

// Batch is what Commit writes. What goes wrong with it is the error of Commit.
type Batch struct {
	b   *pebble.Batch
	err error // the first
}

func (b *Batch) note(err error) {
	if b.err == nil {
		b.err = err
	}
}

// Set stores a value under a key.
func (b *Batch) Set(key, value []byte) { b.note(b.b.Set(key, value, nil)) }

// Delete removes a key.
func (b *Batch) Delete(key []byte) { b.note(b.b.Delete(key, nil)) }

// DeleteRange removes the keys in [from, to).
func (b *Batch) DeleteRange(from, to []byte) { b.note(b.b.DeleteRange(from, to, nil)) }
