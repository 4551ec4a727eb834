//go:build !linux

package blockdev

import (
	"errors"
	"os"

	storage "github.com/storaged/storaged"
)

// OpenOwned refuses: this system's block devices are not known here.
func OpenOwned(path string, _ Identity, _ bool) (*os.File, error) {
	return nil, storage.E("open", storage.KindUnsupported, "device "+path, errors.New("block devices are told apart on Linux only"))
}
