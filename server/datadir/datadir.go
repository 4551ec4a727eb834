// Package datadir is the layout of a node's data directory, and what is kept in it beside the store and the catalog:
//
//	catalog/            the catalog's log and copy, and who the node is (package control)
//	catalog/starts      how often the node was started
//	store/              the segments and tables (package extent)
//	store-id.json       the id that the store will have, written before a cluster is asked to take the node in
package datadir

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/durable"
	"github.com/storaged/storaged/internal/noroom"
	"github.com/storaged/storaged/internal/size"
)

// Dir is the path of a data directory.
type Dir string

// Store is where the store lies.
func (d Dir) Store() string { return filepath.Join(string(d), "store") }

// Catalog is where the catalog lies.
func (d Dir) Catalog() string { return filepath.Join(string(d), "catalog") }

func (d Dir) starts() string { return filepath.Join(d.Catalog(), "starts") }

func (d Dir) pending() string { return filepath.Join(string(d), "store-id.json") }

func (d Dir) subject() string { return "data directory " + string(d) }

// Make makes the directory if it is not there, and refuses a reserve that leaves nothing of its file system.
func (d Dir) Make(reserve size.Bytes) error {
	if err := os.MkdirAll(string(d), 0o750); err != nil {
		if target, linkErr := os.Readlink(string(d)); linkErr == nil && errors.Is(err, os.ErrExist) {
			err = fmt.Errorf("it is a symbolic link to %s, which is not there: mount its disk, or make that directory", target)
		}
		return storage.E("make", storage.KindInvalid, d.subject(), err)
	}
	if total, err := d.TotalBytes(); err == nil && int64(reserve) >= total {
		return storage.E("configuration", storage.KindInvalid, "--reserve", fmt.Errorf(
			"%v is all of the file system of %s, which has %v: no write would ever be taken; use less, or a larger disk",
			reserve, d, size.Bytes(total)))
	}
	return nil
}

// TotalBytes is how large the file system of the directory is.
func (d Dir) TotalBytes() (int64, error) {
	usage, err := vfs.Default.GetDiskUsage(string(d))
	return int64(usage.TotalBytes), err
}

// HasStore reports whether a store was made in the directory.
func (d Dir) HasStore() (bool, error) {
	_, err := os.Stat(d.Store())
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, os.ErrNotExist):
		return false, nil
	}
	return false, storage.E("start", storage.KindIO, d.Store(), err)
}

// CheckEmpty refuses a directory with a store in it. Its caller has found that it does not say which node it is of: the identity is
// written before a store is made, so part of the directory is missing.
func (d Dir) CheckEmpty() error {
	has, err := d.HasStore()
	if err != nil || !has {
		return err
	}
	return storage.E("start", storage.KindCorrupt, d.subject(), fmt.Errorf(
		"it has a store (%s) and not the file that says which node it is of (%s): bring the catalog directory back, or start with "+
			"an empty data directory and --join HOST", d.Store(), filepath.Join(d.Catalog(), "node.json")))
}

// Errorf is an error of a start on the directory.
func (d Dir) Errorf(kind storage.Kind, format string, args ...any) error {
	return storage.E("start", kind, d.subject(), fmt.Errorf(format, args...))
}

// FreeBytes is what is free on the file system of the directory.
func (d Dir) FreeBytes() (int64, error) {
	usage, err := vfs.Default.GetDiskUsage(string(d))
	return int64(usage.AvailBytes), err
}

// WithoutRoom adds what to do to the error of a start, if the file system is full, and what follows then. A start has to write before
// the node can run.
func (d Dir) WithoutRoom(err error, then string) error {
	if !noroom.Is(err) {
		return err
	}
	return storage.E("start on", storage.KindNoSpace, d.subject(), fmt.Errorf("%w; its file system, or its quota, is full: "+
		"remove what does not belong to this node, or enlarge it (100 MiB will do), and %s; its data is unchanged", err, then))
}

// CountStart counts the starts of the node, with this one: of two addresses that a node has given, that of the later start is the
// newer. A directory without the file, of an earlier version or of a node that has just joined, begins at 1.
func (d Dir) CountStart() (starts uint64, err error) {
	b, err := os.ReadFile(d.starts())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, storage.E("read", storage.KindIO, d.starts(), err)
	}
	if err == nil {
		if starts, err = strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err != nil {
			return 0, storage.E("read", storage.KindCorrupt, d.starts(), err)
		}
	}
	starts++
	return starts, durable.WriteFile(d.starts(), []byte(strconv.FormatUint(starts, 10)+"\n"))
}

// PromiseStore returns the id that the store of a joining node will have, and writes it down, so that a lost answer, or a crash
// before the answer was saved, does not make a second node.
func (d Dir) PromiseStore() (storage.StoreID, error) {
	id, err := d.PromisedStore()
	if err != nil || !id.IsZero() {
		return id, err
	}
	if _, err := rand.Read(id[:]); err != nil {
		return id, err
	}
	return id, durable.WriteFile(d.pending(), []byte(fmt.Sprintf("%q\n", id.String())))
}

// PromisedStore returns the id that was written down; zero: none was, and a store that is made now may choose one.
func (d Dir) PromisedStore() (id storage.StoreID, err error) {
	b, err := os.ReadFile(d.pending())
	switch {
	case errors.Is(err, os.ErrNotExist):
		return id, nil
	case err != nil:
		return id, storage.E("read", storage.KindIO, d.pending(), err)
	}
	var text string
	if err = json.Unmarshal(b, &text); err == nil {
		id, err = storage.ParseStoreID(text)
	}
	if err != nil {
		return storage.StoreID{}, storage.E("read", storage.KindCorrupt, d.pending(), err)
	}
	return id, nil
}
