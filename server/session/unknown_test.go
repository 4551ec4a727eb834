package session

import (
	"errors"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog/catalogtest"
)

// TestUnknownExportIsNotDenied: a node that cannot ask the catalog's leader does not say that there is no such export, and one that
// has read nothing does not say that there are none.
func TestUnknownExportIsNotDenied(t *testing.T) {
	read, unread := catalogtest.New(t), catalogtest.New(t)
	read.Cluster(1)
	down := storage.E("ask the catalog", storage.KindUnavailable, "", errors.New("nobody leads it"))
	read.Down, unread.Down = down, down
	for what, c := range map[string]*catalogtest.Catalog{"an old copy": read, "no copy": unread} {
		if _, err := NewLocal(NewDesk(c), 1, "a", "i").Volume(t.Context(), "w"); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("%s: a volume that it does not have: %v, want it unavailable", what, err)
		}
	}
	if _, err := NewLocal(NewDesk(unread), 1, "a", "i").Volumes(t.Context()); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("exports of no copy: %v, want them unavailable", err)
	}
}
