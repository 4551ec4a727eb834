package extent

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
)

// Names of what lies in a data directory.
const (
	identityName = "store.json"
	lockName     = "LOCK"
	metaDirName  = "meta"
	logDirName   = "log"

	identityMagic   = "storaged store"
	identityVersion = 1
	maxIdentityLen  = 4 << 10
)

// Identity says whose store a data directory is. It is written once.
type Identity struct {
	Cluster storage.ClusterID
	Store   storage.StoreID
}

// identityFile is the JSON of store.json.
type identityFile struct {
	Magic   string `json:"magic"`
	Version int    `json:"version"`
	Cluster string `json:"cluster"`
	Store   string `json:"store"`
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
	if file.Version != identityVersion {
		return Identity{}, storage.E("parse", storage.KindUnsupported, identityName,
			fmt.Errorf("format version %d; this program knows %d", file.Version, identityVersion))
	}
	var id Identity
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

// writeIdentity writes the file atomically: whole, synced, renamed, and the directory synced.
func writeIdentity(fsys vfs.FS, dir string, id Identity) error {
	data, err := json.MarshalIndent(identityFile{Magic: identityMagic, Version: identityVersion,
		Cluster: id.Cluster.String(), Store: id.Store.String()}, "", "  ")
	if err != nil {
		return err
	}
	temporary := fsys.PathJoin(dir, identityName+".new")
	f, err := fsys.Create(temporary, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fsys.Rename(temporary, fsys.PathJoin(dir, identityName)); err != nil {
		return err
	}
	return syncDir(fsys, dir)
}

// makeDir makes a directory and those above it that are missing, durably.
func makeDir(fsys vfs.FS, dir string) error {
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
		if err := syncDir(fsys, fsys.PathDir(d)); err != nil {
			return err
		}
	}
	if len(missing) == 0 {
		// A start that was cut off may have made it without syncing. Who made it otherwise may have left a parent
		// that cannot be read: that is no reason not to start.
		_ = syncDir(fsys, fsys.PathDir(dir))
	}
	return nil
}

func syncDir(fsys vfs.FS, dir string) error {
	d, err := fsys.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lockDir takes the exclusive lock of the data directory.
func lockDir(fsys vfs.FS, dir string) (io.Closer, error) {
	lock, err := fsys.Lock(fsys.PathJoin(dir, lockName))
	if err == nil {
		return lock, nil
	}
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) {
		return nil, storage.E("open", storage.KindConflict, "store "+dir, errors.New("it is in use by another process"))
	}
	return nil, storage.E("lock", storage.KindIO, "store "+dir, err)
}

// settleIdentity reads the identity, or writes that of a new store, and compares it with what the caller expects.
func settleIdentity(c *Config) (Identity, error) {
	id, err := ReadIdentity(c.FS, c.Dir)
	if errors.Is(err, storage.ErrNotFound) {
		return createIdentity(c)
	} else if err != nil {
		return Identity{}, err
	}
	conflict := func(format string, args ...any) (Identity, error) {
		return Identity{}, storage.E("open", storage.KindConflict, "store "+c.Dir, fmt.Errorf(format, args...))
	}
	if !c.Cluster.IsZero() && c.Cluster != id.Cluster {
		return conflict("it belongs to cluster %s, not %s", id.Cluster, c.Cluster)
	}
	if !c.Store.IsZero() && c.Store != id.Store {
		return conflict("it is store %s, not %s", id.Store, c.Store)
	}
	return id, nil
}

func createIdentity(c *Config) (Identity, error) {
	if c.Cluster.IsZero() {
		return Identity{}, storage.E("open", storage.KindNotFound, "store "+c.Dir,
			errors.New("there is no store, and no cluster was given to make one for"))
	}
	if _, err := c.FS.Stat(c.FS.PathJoin(c.Dir, metaDirName)); err == nil {
		return Identity{}, storage.E("open", storage.KindCorrupt, "store "+c.Dir,
			fmt.Errorf("it has data, but its %s is missing", identityName))
	}
	id := Identity{Cluster: c.Cluster, Store: c.Store}
	if id.Store.IsZero() {
		_, _ = rand.Read(id.Store[:]) // never fails since Go 1.24
	}
	if err := writeIdentity(c.FS, c.Dir, id); err != nil {
		return Identity{}, storage.E("write identity of", storage.KindIO, "store "+c.Dir, err)
	}
	return id, nil
}
