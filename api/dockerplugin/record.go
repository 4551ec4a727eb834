package dockerplugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/internal/durable"
)

// Bounds of a record.
const (
	maxRecordBytes = 1 << 20
	maxUsers       = 4096
	maxUserBytes   = 128
)

// record is what the plugin knows of a volume, as it lies on disk.
type record struct {
	// Volume is its name in the cluster.
	Volume string `json:"volume"`
	// Name is what Docker calls it, if that is not Volume and was heard here; see api.VolumeName.
	Name string `json:"name,omitempty"`
	// ID is 0 until the volume was made or found.
	ID storage.VolumeID `json:"id,omitempty"`
	// RequestID and SizeBytes are those that the volume is made with, so that a repeated Create finds what it made.
	RequestID string `json:"requestId,omitempty"`
	SizeBytes int64  `json:"sizeBytes,omitempty"`
	// Made: this host made the volume, and Remove deletes it.
	Made    bool    `json:"made,omitempty"`
	Options options `json:"options"`
	// Held is set before the volume is attached and cleared after it was detached. len(Users) > 0 implies Held.
	Held bool `json:"held,omitempty"`
	// Users are the ids of the mounts that Docker has, of the boot Boot.
	Users []string `json:"users,omitempty"`
	Boot  string   `json:"boot,omitempty"`
}

// as is what Docker calls the volume.
func (rec record) as() string {
	if rec.Name != "" {
		return rec.Name
	}
	return rec.Volume
}

// subject names the volume in errors, as Docker does and as the cluster does.
func (rec record) subject() string {
	if rec.Name != "" {
		return fmt.Sprintf("volume %s (%s in the cluster)", rec.Name, rec.Volume)
	}
	return "volume " + rec.Volume
}

// records are the files of the state directory, one a volume. They hold no lock: the plugin's are by volume, as the files.
type records struct {
	dir  string
	boot string // this boot of the host's kernel
}

// openRecords makes the directory, if it is not there.
func openRecords(dir, boot string) (records, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return records{}, storage.E("make", storage.KindIO, "state directory "+dir, err)
	}
	return records{dir: dir, boot: boot}, nil
}

const recordSuffix = ".json"

func (r records) path(volume string) string { return filepath.Join(r.dir, volume+recordSuffix) }

// load returns the record of a volume; ok is false without one. Users of an earlier boot are gone: no container and no
// mount outlives its kernel.
func (r records) load(volume string) (rec record, ok bool, err error) {
	const op = "read"
	path := r.path(volume)
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return record{}, false, nil
	case err != nil:
		return record{}, false, storage.E(op, storage.KindIO, path, err)
	case info.Size() > maxRecordBytes:
		return record{}, false, storage.E(op, storage.KindCorrupt, path, fmt.Errorf("it has %d bytes, a record has at most %d", info.Size(), maxRecordBytes))
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return record{}, false, storage.E(op, storage.KindIO, path, err)
	}
	if err := json.Unmarshal(b, &rec); err == nil && (rec.Volume != volume || api.VolumeName(rec.as()) != volume) {
		err = fmt.Errorf("it is volume %q's, which Docker calls %q", rec.Volume, rec.as())
		return record{}, false, storage.E(op, storage.KindCorrupt, path, err)
	} else if err != nil {
		return record{}, false, storage.E(op, storage.KindCorrupt, path, fmt.Errorf("%w; remove the file, and create the volume anew: "+
			"what the cluster has is taken in", err))
	}
	if rec.Boot != r.boot {
		rec.Users = nil
	}
	return rec, true, nil
}

// save writes the record as a whole: written, synced, renamed, and the directory synced.
func (r records) save(rec record) error {
	rec.Boot = r.boot
	b, err := json.Marshal(rec)
	if err != nil {
		return storage.E("write", storage.KindInternal, rec.subject(), err)
	}
	return durable.WriteFile(r.path(rec.Volume), b)
}

// drop removes the record of a volume, if there is one.
func (r records) drop(volume string) error {
	err := os.Remove(r.path(volume))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil {
		err = durable.SyncDir(r.dir)
	}
	if err != nil {
		return storage.E("remove", storage.KindIO, r.path(volume), err)
	}
	return nil
}

// names returns the volumes that have a record, in order.
func (r records) names() ([]string, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, storage.E("read", storage.KindIO, "state directory "+r.dir, err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), recordSuffix); ok && storage.CheckVolumeName(name) == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}
