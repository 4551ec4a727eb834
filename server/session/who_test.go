package session

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/remote"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/replication/peer/rpc"
	"github.com/storaged/storaged/server/catalog"
)

// asker is a gateway at the desk: this node's own, or a host's.
type asker struct {
	holder storage.Holder
	open   func(req volume.SessionRequest) (volume.SessionInfo, error)
	watch  func(id storage.VolumeID, at storage.AttachmentID) (volume.VolumeState, error)
}

// askers are the ways to a desk. Each is asked the same.
var askers = map[string]func(t *testing.T, d *Desk) asker{
	"this node": func(t *testing.T, d *Desk) asker {
		l := NewLocal(d, 1, "a", "instance")
		return asker{holder: storage.NBDHolder(1, "a", false),
			open: func(req volume.SessionRequest) (volume.SessionInfo, error) {
				return l.OpenSession(t.Context(), "v", req)
			},
			watch: func(id storage.VolumeID, at storage.AttachmentID) (volume.VolumeState, error) {
				return l.WatchVolume(t.Context(), id, at, 0)
			}}
	},
	"a host": func(t *testing.T, d *Desk) asker {
		return asker{holder: storage.Holder{ID: "web", Kind: storage.HolderHost, Host: "web"},
			open: func(req volume.SessionRequest) (volume.SessionInfo, error) {
				return d.serveOpen(t.Context(), rpc.Sender{Address: "10.0.0.7"}, remote.OpenRequest{Volume: "v", Host: "web", Instance: "instance",
					Attachment: req.Attachment, After: req.After, ReadOnly: req.ReadOnly})
			},
			watch: func(id storage.VolumeID, at storage.AttachmentID) (volume.VolumeState, error) {
				a, err := d.serveFollow(t.Context(), rpc.Sender{}, remote.FollowRequest{Host: "web", Wait: time.Second,
					Volumes: []remote.Followed{{Watch: remote.Watch{Volume: id, Attachment: at}}}})
				if err != nil || len(a.Volumes) != 1 {
					return volume.VolumeState{}, err
				}
				return a.Volumes[0].VolumeState, nil
			}}
	},
}

// other is who else uses volumes.
var other = storage.Holder{ID: "db", Kind: storage.HolderHost, Host: "db"}

// TestWhoMayUse: the answer to who may use a volume is one, whichever way it is asked, and what a gateway is told afterwards agrees.
func TestWhoMayUse(t *testing.T) {
	for name, tc := range map[string]struct {
		attach  catalog.Attach                              // by the asker; without an access: it does not attach
		then    func(f *fakeCatalog, at storage.Attachment) // what comes after
		request volume.SessionRequest                       // under the asker's attachment, unless it names one
		want    storage.Kind
		lost    bool
		deleted bool
	}{
		"it is attached":                 {attach: catalog.Attach{Access: storage.AccessExclusive}},
		"shared with others":             {attach: catalog.Attach{Access: storage.AccessShared}, then: attachOther(catalog.Attach{Access: storage.AccessShared})},
		"read-only, and it reads":        {attach: catalog.Attach{Access: storage.AccessExclusive, ReadOnly: true}, request: volume.SessionRequest{ReadOnly: true}},
		"read-only, and it writes":       {attach: catalog.Attach{Access: storage.AccessExclusive, ReadOnly: true}, want: storage.KindPermission},
		"it has not attached":            {want: storage.KindInvalid, lost: true},
		"never given out":                {attach: catalog.Attach{Access: storage.AccessShared}, request: volume.SessionRequest{Attachment: 99}, want: storage.KindInvalid},
		"another's attachment":           {attach: catalog.Attach{Access: storage.AccessShared}, then: attachOther(catalog.Attach{Access: storage.AccessShared}), request: volume.SessionRequest{Attachment: 2}, want: storage.KindPermission},
		"it has detached":                {attach: catalog.Attach{Access: storage.AccessExclusive}, then: detach, want: storage.KindFenced, lost: true},
		"another has taken it over":      {attach: catalog.Attach{Access: storage.AccessExclusive}, then: attachOther(catalog.Attach{Access: storage.AccessExclusive, TakeOver: true}), want: storage.KindFenced, lost: true},
		"the one before is being fenced": {attach: catalog.Attach{Access: storage.AccessExclusive, TakeOver: true}, want: storage.KindUnavailable},
		"it is being deleted": {attach: catalog.Attach{Access: storage.AccessExclusive}, then: func(f *fakeCatalog, at storage.Attachment) {
			detach(f, at)
			f.Must(catalog.DeleteVolume{Volume: storage.ByName("v")})
		}, want: storage.KindNotFound, lost: true, deleted: true},
	} {
		for who, at := range askers {
			t.Run(name+"/"+who, func(t *testing.T) {
				f := newFakeCatalog(t)
				d := NewDesk(f)
				a := at(t, d)
				v := f.Must(catalog.CreateVolume{Name: "v", SizeBytes: 1 << 20, At: time.Now().UTC()}).Volume
				if tc.attach.TakeOver {
					f.Must(catalog.Attach{Volume: storage.ByID(v.ID), Holder: other, Access: storage.AccessExclusive, At: time.Now().UTC()})
				}
				var mine storage.Attachment
				if tc.attach.Access != "" {
					tc.attach.Volume, tc.attach.Holder = storage.ByID(v.ID), a.holder
					var err error
					if mine, err = d.Attach(t.Context(), tc.attach); err != nil {
						t.Fatal(err)
					}
				}
				if tc.then != nil {
					tc.then(f, mine)
				}
				if tc.request.Attachment == 0 {
					tc.request.Attachment = mine.ID
				}
				s, err := a.open(tc.request)
				if kind := storage.KindOf(err); kind != tc.want || err == nil && (s.Volume != v.ID || s.SizeBytes != v.SizeBytes || len(s.Groups) == 0) {
					t.Errorf("%+v, %v; want %v", s, err, tc.want)
				}
				if kept := d.Sessions(); (len(kept) == 1) != (err == nil) {
					t.Errorf("%v are kept alive", kept)
				}
				state, err := a.watch(v.ID, mine.ID)
				if err != nil || (state.Lost != "") != tc.lost || state.Deleted != tc.deleted || state.Revision == 0 {
					t.Errorf("it is told %+v, %v", state, err)
				}
			})
		}
	}
}

func attachOther(cmd catalog.Attach) func(*fakeCatalog, storage.Attachment) {
	return func(f *fakeCatalog, _ storage.Attachment) {
		cmd.Volume, cmd.Holder, cmd.At = storage.ByName("v"), other, time.Now().UTC()
		v := f.Must(cmd).Volume
		f.Must(catalog.SetFenced{Volume: v.ID, Generation: v.Generation})
	}
}

func detach(f *fakeCatalog, at storage.Attachment) {
	v := f.Must(catalog.Detach{Volume: storage.ByName("v"), Attachment: at.ID, At: time.Now().UTC()}).Volume
	f.Must(catalog.SetFenced{Volume: v.ID, Generation: v.Generation})
}

// TestSessionsAreKept: this node's reports name its own sessions until they are closed, and those of a host as long as its gateway
// names them. A host that closes, or names, a session of this node changes nothing about it.
func TestSessionsAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCatalog(t)
		d := NewDesk(f)
		local := NewLocal(d, 1, "a", "instance")
		v, at := f.volume("v")
		own, err := local.OpenSession(t.Context(), "v", volume.SessionRequest{Attachment: at})
		if err != nil {
			t.Fatal(err)
		}
		mine := f.Must(catalog.Attach{Volume: storage.ByID(v.ID), Holder: other, Access: storage.AccessShared, At: time.Now().UTC()}).Attachment
		theirs, err := d.serveOpen(t.Context(), rpc.Sender{}, remote.OpenRequest{Volume: "v", Host: other.ID, Instance: "i", Attachment: mine.ID})
		if err != nil {
			t.Fatal(err)
		}
		kept := func(want ...storage.SessionID) {
			t.Helper()
			if got := slices.Sorted(slices.Values(d.Sessions())); !slices.Equal(got, want) {
				t.Errorf("%v are kept alive, want %v", got, want)
			}
		}
		name := func(ids ...storage.SessionID) {
			if _, err := d.serveFollow(t.Context(), rpc.Sender{}, remote.FollowRequest{Host: other.ID, Sessions: ids}); err != nil {
				t.Error(err)
			}
		}
		for range 3 {
			time.Sleep(heardFor)
			kept(own.ID, theirs.ID)
			name(theirs.ID)
		}
		time.Sleep(heardFor + 1)
		kept(own.ID)
		name(theirs.ID, own.ID)
		for _, q := range []remote.CloseRequest{{Host: other.ID, Session: theirs.ID}, {Host: other.ID, Session: own.ID}} {
			if _, err := d.serveClose(t.Context(), rpc.Sender{}, q); err != nil {
				t.Error(err)
			}
		}
		kept(own.ID)
		if _, err := d.serveClose(t.Context(), rpc.Sender{}, remote.CloseRequest{Session: own.ID}); !errors.Is(err, storage.ErrInvalid) {
			t.Errorf("a close of nobody: %v", err)
		}
		if err := local.CloseSession(t.Context(), own.ID); err != nil {
			t.Error(err)
		}
		kept()
	})
}
