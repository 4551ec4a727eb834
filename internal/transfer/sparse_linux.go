package transfer

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// dataAt returns where the first data at or after off begins and ends; without any, both are size. Not ok: the file
// system does not say.
func dataAt(f *os.File, off, size int64) (data, until int64, ok bool) {
	data, err := f.Seek(off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return size, size, true
	}
	if err != nil {
		return 0, 0, false
	}
	until, err = f.Seek(data, unix.SEEK_HOLE)
	if err != nil || until <= data {
		return 0, 0, false
	}
	return min(data, size), min(until, size), true
}
