package session

import (
	"context"
	"errors"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/catalog/catalogtest"
)

// fakeCatalog is a catalog in memory of a cluster with node 1, named a.
type fakeCatalog struct {
	*catalogtest.Catalog
	t    *testing.T
	lost bool // answers to commands do not arrive
}

func newFakeCatalog(t *testing.T) *fakeCatalog {
	f := &fakeCatalog{Catalog: catalogtest.New(t), t: t}
	f.Cluster(1)
	return f
}

func (f *fakeCatalog) Propose(ctx context.Context, cmd catalog.Command) (catalog.Result, error) {
	r, err := f.Catalog.Propose(ctx, cmd)
	if err == nil && f.lost {
		return catalog.Result{}, storage.E("ask the catalog", storage.KindUnavailable, "", errors.New("the answer was lost"))
	}
	return r, err
}

// volume makes a volume that this node shares, which the copy does not know yet.
func (f *fakeCatalog) volume(name string) (storage.Volume, storage.AttachmentID) {
	f.t.Helper()
	v := f.Must(catalog.CreateVolume{Name: name, SizeBytes: 1 << 20, At: time.Now().UTC()}).Volume
	a := f.Must(catalog.Attach{Volume: storage.ByID(v.ID), Holder: storage.NBDHolder(1, "a", false), Access: storage.AccessShared, At: time.Now().UTC()})
	return *v, a.Attachment.ID
}

// TestOpenAnswerLost: a session whose answer was lost is not kept alive by reports, so that it expires if nobody asks again;
// whoever does gets the same session. One whose close was not answered is not kept alive either.
func TestOpenAnswerLost(t *testing.T) {
	f := newFakeCatalog(t)
	c := NewLocal(NewDesk(f), 1, "a", "instance")
	_, attachment := f.volume("v")
	f.lost = true
	request := volume.SessionRequest{Attachment: attachment}
	if _, err := c.OpenSession(t.Context(), "v", request); !errors.Is(err, storage.ErrUnavailable) {
		t.Fatalf("a lost answer: %v", err)
	}
	if live := c.desk.Sessions(); len(live) != 0 {
		t.Errorf("%v would be kept alive for ever", live)
	}
	f.lost = false
	s, err := c.OpenSession(t.Context(), "v", request)
	if err != nil || s.ID != 1 || len(s.Predecessors) != 0 {
		t.Fatalf("asked again: %+v, %v; want the session that was opened", s, err)
	}
	if live := c.desk.Sessions(); len(live) != 1 || live[0] != s.ID {
		t.Errorf("live: %v", live)
	}
	next, err := c.OpenSession(t.Context(), "v", volume.SessionRequest{Attachment: attachment, After: s.ID})
	if err != nil || next.ID <= s.ID || len(next.Predecessors) != 1 || next.Predecessors[0] != s.ID {
		t.Fatalf("its successor: %+v, %v", next, err)
	}
	f.lost = true
	if err := c.CloseSession(t.Context(), s.ID); !errors.Is(err, storage.ErrUnavailable) {
		t.Fatalf("a close without an answer: %v", err)
	}
	if live := c.desk.Sessions(); len(live) != 1 || live[0] != next.ID {
		t.Errorf("live after the close: %v", live)
	}
}

// TestWatchOnAStaleCopy: a volume that this node has not heard of is not taken for a deleted one, which would end its
// connections: only the leader can say so. The line is News's Read.
func TestWatchOnAStaleCopy(t *testing.T) {
	f := newFakeCatalog(t)
	c := NewLocal(NewDesk(f), 1, "a", "instance")
	v, attachment := f.volume("v")
	f.Down = storage.E("ask the catalog", storage.KindUnavailable, "", nil)
	if s, err := c.WatchVolume(t.Context(), v.ID, attachment, 0); !errors.Is(err, storage.ErrUnavailable) {
		t.Fatalf("a copy that has not heard of it, and no leader: %+v, %v", s, err)
	}
	if _, err := c.Volume(t.Context(), "v"); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("by name without a leader: %v, want it not denied", err)
	}
	f.Down = nil
	s, err := c.WatchVolume(t.Context(), v.ID, attachment, 0)
	if err != nil || s.Deleted || s.SizeBytes != v.SizeBytes {
		t.Fatalf("a stale copy: %+v, %v", s, err)
	}
	gone, err := c.WatchVolume(t.Context(), v.ID+1, 0, 0)
	if err != nil || !gone.Deleted {
		t.Errorf("a volume that is not there: %+v, %v", gone, err)
	}
	f.volume("w")
	if found, err := c.Volume(t.Context(), "w"); err != nil || found.Name != "w" {
		t.Errorf("by name, unknown to the copy: %+v, %v", found, err)
	}
}
