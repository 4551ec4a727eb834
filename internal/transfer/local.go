package transfer

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/noroom"
)

// Output stands for the path in errors about standard output.
const Output = "the output"

// LocalError turns an error of the file at this end into a storage.Error.
func LocalError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	kind, cause := localKind(err), fileCause(err)
	if kind == storage.KindNoSpace {
		cause = LocalFull{cause, path}
	}
	return storage.E(op, kind, path, cause)
}

// LocalFull is the cause of an error: no room at this end, whatever room the cluster has.
type LocalFull struct {
	error
	path string
}

// Unwrap returns what the operating system said.
func (e LocalFull) Unwrap() error { return e.error }

// Hint is the next step.
func (e LocalFull) Hint() string {
	if e.path == Output {
		return "that is where the output goes on this host, not the cluster: make room there, or write to another place"
	}
	return fmt.Sprintf("that is %s on this host, not the cluster: make room there, or write to another place", filepath.Dir(e.path))
}

// localKind is the kind of an error of the operating system.
func localKind(err error) storage.Kind {
	var e *storage.Error
	switch {
	case errors.As(err, &e):
		return e.Kind
	case errors.Is(err, fs.ErrNotExist):
		return storage.KindNotFound
	case errors.Is(err, fs.ErrPermission):
		return storage.KindPermission
	case errors.Is(err, fs.ErrExist):
		return storage.KindExists
	case noroom.Is(err), errors.Is(err, syscall.EFBIG):
		return storage.KindNoSpace
	case errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ENOTDIR):
		return storage.KindInvalid
	default:
		return storage.KindIO
	}
}

// fileCause takes the operation and path off, which the storage.Error around it says already.
func fileCause(err error) error {
	var e *fs.PathError
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}
