package control

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/storaged/storaged/internal/durable"
)

const (
	logFile     = "raft.db"
	newSuffix   = ".new"
	snapshotDir = "snapshots" // the library's name for it
)

// openFiles opens the log, the votes and the snapshots in dir, or makes them. What finds no room says so (noroom.Is), and does no harm: the next
// attempt begins where this one did.
func openFiles(dir string, logger hclog.Logger) (*raftboltdb.BoltStore, *raft.FileSnapshotStore, error) {
	if err := os.MkdirAll(filepath.Join(dir, snapshotDir), 0o755); err != nil {
		return nil, nil, err
	}
	if err := tryFile(dir); err != nil {
		return nil, nil, err
	}
	log, err := openLog(filepath.Join(dir, logFile)) // locks the directory
	if err != nil {
		return nil, nil, err
	}
	err = dropUnfinished(filepath.Join(dir, snapshotDir), "")
	if err == nil {
		var snapshots *raft.FileSnapshotStore
		if snapshots, err = raft.NewFileSnapshotStoreWithLogger(dir, retainedSnapshots, logger); err == nil {
			return log, snapshots, nil
		}
	}
	return nil, nil, errors.Join(err, log.Close())
}

// tryFile makes a file and removes it. The library tries the same, and keeps only the text of the error.
func tryFile(dir string) error {
	f, err := os.CreateTemp(dir, "try*")
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// openLog opens the file of log and votes, which is made under another name: of one that was made in part, for want of room or because the
// power was cut, bbolt says that it is no database, for ever.
//
// Guards I7: a log that is not there is made only where there is nothing at all. A link to a disk that is not mounted is no empty log,
// with which the node would vote once more in a term in which it has voted.
func openLog(path string) (*raftboltdb.BoltStore, error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if err := makeLog(path); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	} else if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("what %s is a link to cannot be read; is its file system mounted? %w", path, err)
	}
	return openBolt(path)
}

func makeLog(path string) error {
	made := path + newSuffix
	if err := os.Remove(made); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	bolt, err := openBolt(made)
	if err != nil {
		_ = os.Remove(made) // it takes room, which may be what is wanted
		return err
	}
	if err := bolt.Close(); err != nil {
		return err
	}
	if err := os.Rename(made, path); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

func openBolt(path string) (*raftboltdb.BoltStore, error) {
	bolt, err := raftboltdb.New(raftboltdb.Options{Path: path, MsgpackUseNewTimeFormat: true})
	if unresized(err) {
		err = fmt.Errorf("%w: %w", err, syscall.ENOSPC)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return bolt, nil
}

// dropUnfinished removes what is left of snapshots that were not finished, of all or of those whose names begin so. The library leaves it
// when it finds no room, or the process ends, and each attempt has a name of its own.
func dropUnfinished(dir, prefix string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) && strings.HasSuffix(e.Name(), ".tmp") {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return err
}
