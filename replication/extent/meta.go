package extent

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
)

// closeTimeout is how long Close waits for a database that has failed, before it is abandoned.
const closeTimeout = time.Second

// meta is the store's Pebble database. It turns what Pebble takes for fatal into a failure of this disk: Pebble calls
// Logger.Fatalf and expects it not to return. Writes run in a goroutine of their own, which stays behind, parked, if
// that happens; whoever waits for it learns of the failure.
type meta struct {
	db     *pebble.DB
	logger *slog.Logger
	onFail func(error)

	failOnce sync.Once
	failed   chan struct{} // closed by fail
	err      error         // set before failed is closed
	release  chan struct{} // closed by close: parked goroutines end

	mu     sync.RWMutex // guards closed; held for reading while the database is used
	closed bool
}

// openMeta opens the database in dir. onFail is called once, when it has failed for good.
func openMeta(c *Config, dir string, readOnly bool, onFail func(error)) (*meta, error) {
	m := &meta{logger: c.Logger, onFail: onFail, failed: make(chan struct{}), release: make(chan struct{})}
	type result struct {
		db  *pebble.DB
		err error
	}
	done := make(chan result, 1)
	go func() {
		defer m.recoverFailure()
		db, err := pebble.Open(dir, m.options(c, readOnly))
		done <- result{db, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return nil, storage.E("open tables of", metaKind(r.err), "store "+c.Dir, r.err)
		}
		m.db = r.db
		return m, nil
	case <-m.failed:
		close(m.release)
		return nil, storage.E("open tables of", storage.KindIO, "store "+c.Dir, m.err)
	}
}

// options keeps Pebble small: the process has other uses for memory, and tables are a hundredth of the data.
func (m *meta) options(c *Config, readOnly bool) *pebble.Options {
	o := &pebble.Options{
		FS:                          metaFS{c.FS, m},
		ReadOnly:                    readOnly,
		ErrorIfNotExists:            readOnly,
		CacheSize:                   c.BlockCacheBytes,
		MemTableSize:                uint64(c.MemTableBytes),
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       24,
		MaxOpenFiles:                256,
		FormatMajorVersion:          pebble.FormatNewest,
		DisableTableStats:           true,
		Logger:                      pebbleLogger{m},
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) { m.fail(err) },
			DataCorruption: func(i pebble.DataCorruptionInfo) {
				m.logger.Error("table file is damaged", "dir", c.Dir, "file", i.Path, "err", i.Details)
			},
		},
	}
	o.CompactionConcurrencyRange = func() (int, int) { return 1, 1 }
	// Without the timer of 100 ms that looks whether more compactions are allowed than before: there is always one, and
	// its end starts the next. The name is Pebble's; its tests are not the only ones that can do without.
	o.Experimental.CompactionScheduler = pebble.NewConcurrencyLimitSchedulerWithNoPeriodicGrantingForTest()
	for i := range o.Levels {
		// Locations and checksums do not compress.
		o.Levels[i].Compression = func() *sstable.CompressionProfile { return sstable.NoCompression }
	}
	return o
}

// metaKind tells damage from a disk's refusal.
func metaKind(err error) storage.Kind {
	if pebble.IsCorruptionError(err) {
		return storage.KindCorrupt
	}
	return storage.KindIO
}

// fail marks the database failed for good.
func (m *meta) fail(err error) {
	m.failOnce.Do(func() {
		m.err = err
		close(m.failed)
		m.onFail(err)
	})
}

// failure returns the reason of the failure, or nil.
func (m *meta) failure() error {
	select {
	case <-m.failed:
		return m.err
	default:
		return nil
	}
}

// recoverFailure turns a panic of Pebble, which it uses for errors of its log, into a failure.
func (m *meta) recoverFailure() {
	if p := recover(); p != nil {
		err, ok := p.(error)
		if !ok {
			err = fmt.Errorf("%v", p)
		}
		m.fail(err)
	}
}

// write runs fn, which commits to the database, and waits for it or for the failure of the database.
func (m *meta) write(fn func(*pebble.DB) error) error {
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
			return storage.E("write tables", storage.KindIO, "", err)
		}
		return nil
	case <-m.failed:
		return storage.E("write tables", storage.KindIO, "", m.err)
	}
}

func (m *meta) usable() error {
	if m.closed {
		return storage.E("use tables", storage.KindUnavailable, "", errors.New("the store is closed"))
	}
	if err := m.failure(); err != nil {
		return storage.E("use tables", storage.KindIO, "", err)
	}
	return nil
}

// commit writes a batch durably. It fills the batch by fn.
func (m *meta) commit(fn func(*pebble.Batch) error) error { return m.commitBatch(pebble.Sync, fn) }

// commitNoSync writes a batch that the next commit makes durable.
func (m *meta) commitNoSync(fn func(*pebble.Batch) error) error {
	return m.commitBatch(pebble.NoSync, fn)
}

func (m *meta) commitBatch(o *pebble.WriteOptions, fn func(*pebble.Batch) error) error {
	return m.write(func(db *pebble.DB) error {
		b := db.NewBatch()
		defer b.Close()
		if err := fn(b); err != nil {
			return err
		}
		return b.Commit(o)
	})
}

// get returns a copy of the value, or nil without an error if there is none.
func (m *meta) get(key []byte) ([]byte, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := m.usable(); err != nil {
		return nil, err
	}
	v, closer, err := m.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, storage.E("read tables", metaKind(err), "", err)
	}
	value := append(make([]byte, 0, len(v)), v...)
	return value, closer.Close()
}

// first returns copies of the first key not below from and below to, and of its value; ok is false if there is none.
func (m *meta) first(from, to []byte) (key, value []byte, ok bool, err error) {
	err = m.scan(from, to, func(k, v []byte) (bool, error) {
		key, value, ok = append([]byte(nil), k...), append([]byte(nil), v...), true
		return false, nil
	})
	return key, value, ok, err
}

// scan calls fn with the keys in [from, to), until it returns false or an error. fn must not keep the slices.
func (m *meta) scan(from, to []byte, fn func(key, value []byte) (more bool, err error)) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := m.usable(); err != nil {
		return err
	}
	return scanReader(m.db, from, to, fn)
}

// scanReader is scan on any reader: the database, or a snapshot of it.
func scanReader(r pebble.Reader, from, to []byte, fn func(key, value []byte) (more bool, err error)) (err error) {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return storage.E("read tables", metaKind(err), "", err)
	}
	defer func() {
		if e := it.Close(); e != nil && err == nil {
			err = storage.E("read tables", metaKind(e), "", e)
		}
	}()
	for ok := it.First(); ok; ok = it.Next() {
		value, e := it.ValueAndErr()
		if e != nil {
			return storage.E("read tables", metaKind(e), "", e)
		}
		if more, e := fn(it.Key(), value); e != nil || !more {
			return e
		}
	}
	return nil
}

// close closes the database. One that has failed is given closeTimeout and then abandoned.
func (m *meta) close() error {
	close(m.release)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
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
		return err
	case <-m.failed:
	}
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case _ = <-done: // the disk has failed already: m.err says how
	case <-timer.C:
		m.logger.Warn("the tables of a failed disk could not be closed, their memory is lost until the process ends")
	}
	return storage.E("close tables", storage.KindIO, "", m.err)
}

// pebbleLogger is Pebble's way to speak. What it says in passing is of no use to an operator.
type pebbleLogger struct{ m *meta }

func (l pebbleLogger) Infof(string, ...any) {}

func (l pebbleLogger) Errorf(format string, args ...any) {
	l.m.logger.Warn("tables", "err", fmt.Sprintf(format, args...))
}

// Fatalf does not return and does not end the process: the disk is failed, and the caller waits for the store to be
// closed.
func (l pebbleLogger) Fatalf(format string, args ...any) {
	l.m.fail(fmt.Errorf(format, args...))
	<-l.m.release
	runtime.Goexit()
}

var _ pebble.Logger = pebbleLogger{}

// metaFS is the file system that Pebble sees, which takes two things for granted of it. Where Pebble moves the marker that
// names its manifest, it counts on the manifest's own entry in the directory to be on the disk when the marker's is, which
// nobody has synced: here the directory is synced before a marker is made. And in goroutines of its own it panics when a
// directory cannot be synced (vfs/atomicfs), which would end the process: here that fails the disk, as Fatalf does.
type metaFS struct {
	vfs.FS
	m *meta
}

// Create implements vfs.FS.
func (f metaFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasPrefix(f.PathBase(name), "marker.") {
		if err := syncDir(f.FS, f.PathDir(name)); err != nil {
			return nil, err
		}
	}
	return f.FS.Create(name, category)
}

// OpenDir implements vfs.FS.
func (f metaFS) OpenDir(name string) (vfs.File, error) {
	d, err := f.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return metaDirFile{d, f.m}, nil
}

// Unwrap implements vfs.FS.
func (f metaFS) Unwrap() vfs.FS { return f.FS }

type metaDirFile struct {
	vfs.File
	m *meta
}

// Sync implements vfs.File. It does not return an error.
func (d metaDirFile) Sync() error {
	if err := d.File.Sync(); err != nil {
		d.m.fail(fmt.Errorf("sync directory: %w", err))
		<-d.m.release
		runtime.Goexit()
	}
	return nil
}

// metaDir returns the directory of the database.
func metaDir(fs vfs.FS, dir string) string { return fs.PathJoin(dir, metaDirName) }

// diskBytes returns the size of the database's files; 0 when it is closed or failed.
func (m *meta) diskBytes() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.usable() != nil {
		return 0
	}
	return int64(m.db.Metrics().DiskSpaceUsage())
}

// snapshot returns the database as it is now. It must be closed before close.
func (m *meta) snapshot() (*pebble.Snapshot, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := m.usable(); err != nil {
		return nil, err
	}
	return m.db.NewSnapshot(), nil
}

// scanOn is scan on a snapshot.
func (m *meta) scanOn(r pebble.Reader, from, to []byte, fn func(key, value []byte) (more bool, err error)) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := m.usable(); err != nil {
		return err
	}
	return scanReader(r, from, to, fn)
}
