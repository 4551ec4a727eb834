package storedir

import (
	"errors"
	"io"
	"io/fs"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/diskio"
	"github.com/storaged/storaged/internal/noroom"
)

// scrubName is a file and no key of the tables: builds that do not know it leave it alone, so it needs no format.
const scrubName = "scrub.json"

const maxScrubLen = 1 << 20

// ReadScrub returns where the scrub of the store in dir was; nil if there is nothing. Errors are of KindCorrupt for a file that is too
// long, and KindIO.
func ReadScrub(files vfs.FS, dir string) ([]byte, error) {
	path := files.PathJoin(dir, scrubName)
	f, err := files.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var b []byte
	if err == nil {
		b, err = io.ReadAll(io.LimitReader(f, maxScrubLen+1))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return nil, storage.E("read", storage.KindIO, path, err)
	}
	if len(b) > maxScrubLen {
		return nil, storage.E("read", storage.KindCorrupt, path, errors.New("it is too long"))
	}
	return b, nil
}

// WriteScrub stores it. Errors are of KindNoSpace and KindIO; what was there before is unchanged then.
func WriteScrub(files vfs.FS, dir string, state []byte) error {
	path := files.PathJoin(dir, scrubName)
	err := diskio.Replace(files, path, ".tmp", state)
	if err == nil {
		return nil
	}
	kind := storage.KindIO
	if noroom.Is(err) {
		kind = storage.KindNoSpace
	}
	return storage.E("write", kind, path, err)
}
