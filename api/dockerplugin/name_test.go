package dockerplugin

import (
	"strings"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/csi/csitest"
)

// madeByDocker are names that Docker and Compose make, or people may say to them, and that no volume of the cluster has;
// the beginning of what it has instead.
var madeByDocker = map[string]string{
	"proj_db":                  "proj-db-",
	"my.project_Data.1":        "my-project-data-1-",
	"DB":                       "db-",
	"db-":                      "db-",
	"9":                        "9",
	strings.Repeat("ab01", 16): "ab01ab01ab01ab01ab01ab01ab01ab01ab01-", // an anonymous volume
	strings.Repeat("x", 200):   strings.Repeat("x", 36) + "-",
}

// TestNames: Docker finds the volume under the name that it has given, in every call, also after a restart and on another
// host. The cluster has the volume under another name.
func TestNames(t *testing.T) {
	for name, begins := range madeByDocker {
		t.Run(name, func(t *testing.T) {
			ctx, w := t.Context(), csitest.New()
			a, b := newServer(t, w, "host-a"), newServer(t, w, "host-b")
			p, q := a.start(), b.start()
			must(none(p.Create(ctx, name, map[string]string{"size": "1GiB"})))(t)
			volumes := must(w.Cluster().Volumes(ctx, api.VolumeFilter{}, "", 10))(t)
			if len(volumes) != 1 || !strings.HasPrefix(volumes[0].Name, begins) || storage.CheckVolumeName(volumes[0].Name) != nil {
				t.Fatalf("the cluster has %+v", volumes)
			}
			path := must(p.Mount(ctx, name, "c1"))(t)
			p = a.start()
			calledSo(t, p, name, path)

			_, err := q.Get(ctx, name)
			wants(t, err, storage.ErrNotFound, name)
			must(none(q.Create(ctx, name, nil)))(t)
			calledSo(t, q, name, "")
			_, err = q.Mount(ctx, name, "c2")
			wants(t, err, storage.ErrConflict, "host-a", name, "storagectl attach "+volumes[0].Name+" --take-over")
			wants(t, p.Remove(ctx, name), storage.ErrConflict, name)
			must(none(p.Unmount(ctx, name, "c1")))(t)
			must(q.Mount(ctx, name, "c2"))(t)
			must(none(q.Unmount(ctx, name, "c2")))(t)
			must(none(q.Remove(ctx, name)))(t)
			must(none(p.Remove(ctx, name)))(t)
			if left := append(a.left(), b.left()...); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			if list := must(w.Cluster().Volumes(ctx, api.VolumeFilter{}, "", 10))(t); len(list) > 0 {
				t.Errorf("volumes left: %v", list)
			}
		})
	}
}

// calledSo checks that Docker finds its one volume under that name.
func calledSo(t *testing.T, p *Plugin, name, path string) {
	t.Helper()
	list := must(p.List(t.Context()))(t)
	if len(list) != 1 || describe(list[0]).Name != name || list[0].Mountpoint != path {
		t.Errorf("listed as %+v", list)
	}
	if v := must(p.Get(t.Context(), name))(t); describe(v).Name != name || v.Mountpoint != path {
		t.Errorf("found as %+v", v)
	}
	if at := must(p.Path(t.Context(), name))(t); at != path {
		t.Errorf("it is at %q, want %q", at, path)
	}
}

// TestBothNames: who took a volume in by the cluster's name finds it by Docker's, too, and lists it so from then on.
func TestBothNames(t *testing.T) {
	ctx, w := t.Context(), csitest.New()
	a, b := newServer(t, w, "host-a"), newServer(t, w, "host-b")
	must(none(a.start().Create(ctx, "proj_db", map[string]string{"size": "1GiB"})))(t)
	own := must(w.Cluster().Volumes(ctx, api.VolumeFilter{}, "", 10))(t)[0].Name
	q := b.start()
	must(none(q.Create(ctx, own, nil)))(t)
	calledSo(t, q, own, "")
	if v := must(q.Get(ctx, "proj_db"))(t); describe(v).Name != "proj_db" {
		t.Errorf("found as %+v", v)
	}
	calledSo(t, b.start(), "proj_db", "")
	if v := must(q.Get(ctx, own))(t); describe(v).Name != own {
		t.Errorf("found as %+v", v)
	}
	w.Fail(func(int) csitest.When { return csitest.Before })
	calledSo(t, q, "proj_db", "") // without the cluster
}

// TestNoNames: what Docker would not give as a name is refused, and is no path of the state directory.
func TestNoNames(t *testing.T) {
	p := newServer(t, csitest.New(), "host-a").start()
	for _, name := range []string{"", "a/b", "../db", ".", "..", "-db", "_db", "d b", "d\x00b", "däb", strings.Repeat("x", 256)} {
		for call, err := range map[string]error{
			"create": p.Create(t.Context(), name, map[string]string{"size": "1GiB"}),
			"remove": p.Remove(t.Context(), name),
			"get":    second(p.Get(t.Context(), name)),
			"mount":  second(p.Mount(t.Context(), name, "c1")),
			"path":   second(p.Path(t.Context(), name)),
		} {
			if err == nil {
				t.Errorf("%s of %q succeeded", call, name)
				continue
			}
			wants(t, err, storage.ErrInvalid, "check volume name")
		}
	}
}

func second[A any](_ A, err error) error { return err }

// TestRecordOfAnotherName: a record whose names do not belong together is damage.
func TestRecordOfAnotherName(t *testing.T) {
	r := must(openRecords(t.TempDir(), "1"))(t)
	must(none(r.save(record{Volume: "db", Name: "proj_db", ID: 7})))(t)
	_, _, err := r.load("db")
	wants(t, err, storage.ErrCorrupt, r.path("db"), "proj_db")
}
