package diskio

import (
	"errors"

	"github.com/storaged/storaged/internal/noroom"
)

// NoSpace reports whether an error says that the file system, or what this user may have of it, is full. The error of a
// sync (Synced) never does: nobody knows what became of the bytes that were written before it.
func NoSpace(err error) bool {
	return noroom.Is(err) && !errors.As(err, new(syncError))
}

// Synced marks the error of a sync; nil stays nil.
func Synced(err error) error {
	if err == nil {
		return nil
	}
	return syncError{err}
}

type syncError struct{ error }

func (e syncError) Unwrap() error { return e.error }
