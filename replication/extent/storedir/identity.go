package storedir

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/diskio"
	"github.com/storaged/storaged/internal/version"
)

// Names of what lies in a data directory.
const (
	identityName = "store.json"
	lockName     = "LOCK"
	metaDirName  = "meta"
	logDirName   = "log"

	identityMagic = "storaged store"
	// identityVersion is the version of store.json from which on it says the format. Builds that know no formats refuse it.
	identityVersion = 2
	maxIdentityLen  = 4 << 10
)

// Formats of what lies in a data directory. A build reads all up to NewestFormat, and writes that of the directory.
const (
	FirstFormat    = 1 // of a new store
	PagesByEpoch   = 2 // pages hold what was written at their epoch, live counts are two numbers, there are index keys
	AlignedRecords = 3 // the log has records of version 2, with padding before their data
	NewestFormat   = AlignedRecords
)

// Identity says whose store a data directory is, and what may lie in it. The ids are written once, the format is raised.
type Identity struct {
	Cluster storage.ClusterID
	Store   storage.StoreID
	Format  int // FirstFormat to NewestFormat
}

// identityFile is the JSON of store.json.
type identityFile struct {
	Magic   string `json:"magic"`
	Version int    `json:"version"`
	Cluster string `json:"cluster"`
	Store   string `json:"store"`
	// Format and Build, which raised it, are there from version 2 on.
	Format int    `json:"format,omitempty"`
	Build  string `json:"build,omitempty"`
}

// ReadIdentity reads the identity of the store in dir. The error is of KindNotFound when there is none yet, of
// KindUnsupported for a later format and of KindCorrupt for a file that is not one.
func ReadIdentity(fsys vfs.FS, dir string) (Identity, error) {
	fail := func(kind storage.Kind, err error) (Identity, error) {
		return Identity{}, storage.E("read identity of", kind, "store "+dir, err)
	}
	f, err := fsys.Open(fsys.PathJoin(dir, identityName))
	if errors.Is(err, fs.ErrNotExist) {
		return fail(storage.KindNotFound, err)
	} else if err != nil {
		return fail(storage.KindIO, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxIdentityLen))
	if err != nil {
		return fail(storage.KindIO, err)
	}
	id, err := parseIdentity(data)
	if err != nil {
		return fail(storage.KindOf(err), err)
	}
	return id, nil
}

func parseIdentity(data []byte) (Identity, error) {
	corrupt := func(err error) (Identity, error) {
		return Identity{}, &storage.Error{Op: "parse", Kind: storage.KindCorrupt, Subject: identityName, Err: err}
	}
	var file identityFile
	if err := json.Unmarshal(data, &file); err != nil {
		return corrupt(err)
	}
	if file.Magic != identityMagic {
		return corrupt(fmt.Errorf("magic %q, want %q", file.Magic, identityMagic))
	}
	if file.Version == 1 {
		file.Format = FirstFormat
	}
	if file.Version > identityVersion || file.Format > NewestFormat {
		return Identity{}, storage.E("parse", storage.KindUnsupported, identityName, fmt.Errorf(
			"the store is of format %d (version %d of this file), and this build, %s, knows formats up to %d: run build %s, which raised it, or a later one",
			file.Format, file.Version, version.Version, NewestFormat, cmp.Or(file.Build, "(unknown)")))
	}
	if file.Version < 1 || file.Format < FirstFormat {
		return corrupt(fmt.Errorf("format %d, version %d", file.Format, file.Version))
	}
	id := Identity{Format: file.Format}
	var err error
	if id.Cluster, err = storage.ParseClusterID(file.Cluster); err != nil {
		return corrupt(err)
	}
	if id.Store, err = storage.ParseStoreID(file.Store); err != nil {
		return corrupt(err)
	}
	if id.Cluster.IsZero() || id.Store.IsZero() {
		return corrupt(errors.New("an id is zero"))
	}
	return id, nil
}

// WriteIdentity writes the file atomically: whole, synced, renamed, and the directory synced. While the format is the first,
// earlier builds read it.
func WriteIdentity(fsys vfs.FS, dir string, id Identity) error {
	file := identityFile{Magic: identityMagic, Version: 1, Cluster: id.Cluster.String(), Store: id.Store.String()}
	if id.Format > FirstFormat {
		file.Version, file.Format, file.Build = identityVersion, id.Format, version.Version
	}
	data, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return err
	}
	return diskio.Replace(fsys, fsys.PathJoin(dir, identityName), ".new", append(data, '\n'))
}

// Make makes a directory and those above it that are missing, durably.
func Make(fsys vfs.FS, dir string) error {
	var missing []string
	for d := dir; ; d = fsys.PathDir(d) {
		if _, err := fsys.Stat(d); err == nil || d == fsys.PathDir(d) {
			break
		}
		missing = append(missing, d)
	}
	if err := fsys.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, d := range missing {
		if err := diskio.SyncDir(fsys, fsys.PathDir(d)); err != nil {
			return err
		}
	}
	if len(missing) == 0 {
		// A start that was cut off may have made it without syncing. Who made it otherwise may have left a parent
		// that cannot be read: that is no reason not to start.
		_ = diskio.SyncDir(fsys, fsys.PathDir(dir))
	}
	return nil
}

// TablesDir returns the directory of the tables' database.
func TablesDir(fsys vfs.FS, dir string) string { return fsys.PathJoin(dir, metaDirName) }

// LogDir returns the directory of the segment log.
func LogDir(fsys vfs.FS, dir string) string { return fsys.PathJoin(dir, logDirName) }

// Lock takes the exclusive lock of the data directory, KindConflict if another process has it.
func Lock(fsys vfs.FS, dir string) (io.Closer, error) {
	lock, err := fsys.Lock(fsys.PathJoin(dir, lockName))
	if err == nil {
		return lock, nil
	}
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) {
		return nil, storage.E("open", storage.KindConflict, "store "+dir, errors.New("it is in use by another process"))
	}
	return nil, storage.E("lock", storage.KindIO, "store "+dir, err)
}

// SettleIdentity reads the identity, or writes that of a new store, and compares it with what is expected, of which zero ids
// say nothing: a new store gets a random id then, and is refused without a cluster.
func SettleIdentity(fsys vfs.FS, dir string, expected Identity) (Identity, error) {
	id, err := ReadIdentity(fsys, dir)
	if errors.Is(err, storage.ErrNotFound) {
		return createIdentity(fsys, dir, expected)
	} else if err != nil {
		return Identity{}, err
	}
	conflict := func(format string, args ...any) (Identity, error) {
		return Identity{}, storage.E("open", storage.KindConflict, "store "+dir, fmt.Errorf(format, args...))
	}
	if !expected.Cluster.IsZero() && expected.Cluster != id.Cluster {
		return conflict("it belongs to cluster %s, not %s", id.Cluster, expected.Cluster)
	}
	if !expected.Store.IsZero() && expected.Store != id.Store {
		return conflict("it is store %s, not %s", id.Store, expected.Store)
	}
	return id, nil
}

func createIdentity(fsys vfs.FS, dir string, id Identity) (Identity, error) {
	if id.Cluster.IsZero() {
		return Identity{}, storage.E("open", storage.KindNotFound, "store "+dir,
			errors.New("there is no store, and no cluster was given to make one for"))
	}
	if _, err := fsys.Stat(TablesDir(fsys, dir)); err == nil {
		return Identity{}, storage.E("open", storage.KindCorrupt, "store "+dir,
			fmt.Errorf("it has data, but its %s is missing", identityName))
	}
	if id.Store.IsZero() {
		_, _ = rand.Read(id.Store[:]) // never fails since Go 1.24
	}
	id.Format = FirstFormat
	if err := WriteIdentity(fsys, dir, id); err != nil {
		return Identity{}, storage.E("write identity of", storage.KindIO, "store "+dir, err)
	}
	return id, nil
}
