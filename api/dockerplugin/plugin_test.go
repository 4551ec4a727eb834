package dockerplugin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/csi/csitest"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/api/hostfs"
)

const gib = 1 << 30

// gateway is a host's gateway that makes its own attachments, as the real one does.
type gateway struct {
	*csitest.Machine
	id      string
	cluster *csitest.Client
}

func (g *gateway) Attach(ctx context.Context, r host.Request) (host.Attachment, error) {
	a, err := g.cluster.Attach(ctx, api.NewAttachment{Volume: storage.VolumeRef{Name: r.Volume}, Access: r.Access, ReadOnly: r.ReadOnly,
		TakeOver: r.TakeOver, Holder: storage.Holder{ID: g.id, Kind: storage.HolderHost, Host: g.id}})
	if err != nil {
		return host.Attachment{}, err
	}
	r.AttachmentID, r.TakeOver = a.ID, false
	return g.Machine.Attach(ctx, r)
}

func (g *gateway) Detach(ctx context.Context, volume string, force bool) error {
	if err := g.Machine.Detach(ctx, volume, force); err != nil {
		return err
	}
	return g.cluster.Detach(ctx, api.Detachment{Volume: storage.VolumeRef{Name: volume}, HolderID: g.id})
}

// server is a host with a state directory, on which plugins come and go.
type server struct {
	t       *testing.T
	w       *csitest.World
	machine *csitest.Machine
	id      string
	dir     string
	boot    string
}

func newServer(t *testing.T, w *csitest.World, id string) *server {
	return &server{t: t, w: w, machine: w.Machine(id, ""), id: id, dir: t.TempDir(), boot: "1"}
}

// start returns a plugin that has just started.
func (s *server) start() *Plugin {
	s.t.Helper()
	p, err := Open(Config{Cluster: s.w.Client(), Devices: &gateway{s.machine, s.id, s.w.Client()}, Mounts: hostfs.InSlots(s.machine.Mounts()), StateDir: s.dir, Boot: s.boot})
	if err == nil {
		err = p.Recover(s.t.Context())
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// left returns what is on the host, or in its state directory, and should not be.
func (s *server) left() []string {
	left := s.machine.Left()
	files, err := filepath.Glob(filepath.Join(s.dir, "volumes", "*"))
	if err != nil {
		s.t.Fatal(err)
	}
	return append(left, files...)
}

func must[A any](a A, err error) func(*testing.T) A {
	return func(t *testing.T) A {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
}

func none(err error) (struct{}, error) { return struct{}{}, err }

// wants checks an error's kind and that it says all of the words.
func wants(t *testing.T, err error, kind *storage.Error, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("error %v, want one of kind %v", err, kind.Kind)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

// step is one call of a life, on one of two hosts.
type step struct {
	on   int
	name string
	call func(context.Context, *Plugin) error
}

// life is a volume's: it is made and used on the first host, used on the second one, and removed.
func life(w *csitest.World, name string) []step {
	mount := func(user string) func(context.Context, *Plugin) error {
		return func(ctx context.Context, p *Plugin) error {
			path, err := p.Mount(ctx, name, user)
			if err == nil && path != p.mountpoint(api.VolumeName(name)) {
				return fmt.Errorf("mounted at %q", path)
			}
			return err
		}
	}
	unmount := func(user string) func(context.Context, *Plugin) error {
		return func(ctx context.Context, p *Plugin) error { return p.Unmount(ctx, name, user) }
	}
	create := func(options map[string]string) func(context.Context, *Plugin) error {
		return func(ctx context.Context, p *Plugin) error { return p.Create(ctx, name, options) }
	}
	remove := func(ctx context.Context, p *Plugin) error { return p.Remove(ctx, name) }
	return []step{
		{0, "create", create(map[string]string{"size": "1GiB", "fs": "xfs"})},
		{0, "mount for the first", mount("c1")},
		{0, "mount for the second", mount("c2")},
		{0, "get", func(ctx context.Context, p *Plugin) error {
			v, err := p.Get(ctx, name)
			if err == nil && v.Mountpoint == "" {
				return errors.New("no mountpoint is shown")
			}
			return err
		}},
		{0, "unmount the first", unmount("c1")},
		{0, "unmount the second", unmount("c2")},
		{1, "take in", create(nil)},
		{1, "mount elsewhere", mount("c3")},
		{1, "list", func(ctx context.Context, p *Plugin) error {
			list, err := p.List(ctx)
			if err == nil && (len(list) != 1 || list[0].As != name) {
				return fmt.Errorf("listed %v", list)
			}
			return err
		}},
		{1, "look at the file system", func(ctx context.Context, p *Plugin) error {
			v, err := w.Cluster().Volume(ctx, api.VolumeName(name))
			if fs, _ := w.Content(v.ID); err == nil && fs != "xfs" {
				return fmt.Errorf("there is %q", fs)
			}
			return err
		}},
		{1, "unmount elsewhere", unmount("c3")},
		{1, "forget", remove},
		{0, "delete", remove},
	}
}

// live leads a life in which step number at fails, and repeats the call with a plugin that has just started; each call is
// repeated when it has succeeded, too. It returns how many steps were made.
func live(t *testing.T, name string, at int, when csitest.When) int {
	t.Helper()
	w := csitest.New()
	hosts := []*server{newServer(t, w, "host-a"), newServer(t, w, "host-b")}
	plugins := []*Plugin{hosts[0].start(), hosts[1].start()}
	w.Fail(func(step int) csitest.When {
		if step == at {
			return when
		}
		return csitest.Never
	})
	for _, s := range life(w, name) {
		for range 2 {
			if s.call(t.Context(), plugins[s.on]) == nil {
				continue
			}
			plugins[s.on] = hosts[s.on].start()
			if err := s.call(t.Context(), plugins[s.on]); err != nil {
				t.Fatalf("step %d failed (%d); %q was repeated: %v", at, when, s.name, err)
			}
		}
	}
	for _, h := range hosts {
		if left := h.left(); len(left) > 0 {
			t.Errorf("step %d failed (%d): left on %s: %v", at, when, h.id, left)
		}
	}
	if list, err := w.Cluster().Volumes(t.Context(), api.VolumeFilter{}, "", 10); err != nil || len(list) > 0 {
		t.Errorf("step %d failed (%d): volumes left: %v %v", at, when, list, err)
	}
	return w.Steps()
}

// TestFaults fails every step of a volume's life once, before it has its effect and after, and begins again with a plugin
// that knows nothing but its state directory. It fails, for example, when make does not save its request id before it asks,
// when Mount mounts without having looked what is mounted, or when Mount does not say that it holds a volume beforehand.
func TestFaults(t *testing.T) {
	steps := live(t, "db", 0, csitest.Never)
	if steps < 40 {
		t.Fatalf("a life has %d steps only", steps)
	}
	for at := 1; at <= steps; at++ {
		for _, name := range []string{"db", "proj_db"} { // one that is the cluster's too, one that is not
			live(t, name, at, csitest.Before)
			live(t, name, at, csitest.After)
		}
	}
}

// TestAbandoned fails every step of a Mount that nobody repeats: the next plugin leaves the volume to other hosts.
func TestAbandoned(t *testing.T) {
	for at, failed := 1, true; failed; at++ {
		for _, when := range []csitest.When{csitest.Before, csitest.After} {
			w := csitest.New()
			a, b := newServer(t, w, "host-a"), newServer(t, w, "host-b")
			p := a.start()
			must(none(p.Create(t.Context(), "db", map[string]string{"size": "1GiB"})))(t)
			w.Fail(func(step int) csitest.When { // the process that fails has no chance to clean up
				switch {
				case step < at:
					return csitest.Never
				case step == at:
					return when
				}
				return csitest.Before
			})
			_, err := p.Mount(t.Context(), "db", "c1")
			failed = err != nil
			w.Fail(nil)
			if failed {
				a.start()
			} else {
				must(none(a.start().Unmount(t.Context(), "db", "c1")))(t)
			}
			q := b.start()
			must(none(q.Create(t.Context(), "db", nil)))(t)
			if _, err := q.Mount(t.Context(), "db", "c2"); err != nil {
				t.Errorf("step %d failed (%d): %v", at, when, err)
			}
		}
	}
}

// TestHeldElsewhere: the second host is told who has the volume and what to do, does it, and the first one is told.
func TestHeldElsewhere(t *testing.T) {
	ctx, w := t.Context(), csitest.New()
	a, b := newServer(t, w, "host-a"), newServer(t, w, "host-b")
	p, q := a.start(), b.start()
	must(none(p.Create(ctx, "db", map[string]string{"size": "1GiB"})))(t)
	must(p.Mount(ctx, "db", "c1"))(t)
	must(none(q.Create(ctx, "db", nil)))(t)
	_, err := q.Mount(ctx, "db", "c2")
	wants(t, err, storage.ErrConflict, "host-a", "since", "take_over=true", "storagectl attach db --take-over")
	wants(t, q.Create(ctx, "db", map[string]string{"size": "2GiB"}), storage.ErrConflict, "1073741824")
	must(none(q.Remove(ctx, "db")))(t)
	must(none(q.Create(ctx, "db", map[string]string{"take_over": "true"})))(t)
	must(q.Mount(ctx, "db", "c2"))(t)

	_, err = p.Mount(ctx, "db", "c3")
	wants(t, err, storage.ErrFenced, "taken over", "stop the containers")
	wants(t, p.Remove(ctx, "db"), storage.ErrConflict, "1 containers")
	must(none(p.Unmount(ctx, "db", "c1")))(t)
	_, err = p.Mount(ctx, "db", "c3")
	wants(t, err, storage.ErrConflict, "host-b")
	must(none(q.Unmount(ctx, "db", "c2")))(t)
	must(p.Mount(ctx, "db", "c3"))(t)
	must(none(p.Unmount(ctx, "db", "c3")))(t)
	if left := a.machine.Left(); len(left) > 0 {
		t.Errorf("left on host-a: %v", left)
	}
}

// TestUsers: users are counted by id over a restart of the plugin, but not of the host.
func TestUsers(t *testing.T) {
	ctx, w := t.Context(), csitest.New()
	s := newServer(t, w, "host-a")
	p := s.start()
	must(none(p.Create(ctx, "db", map[string]string{"size": "1GiB"})))(t)
	for _, user := range []string{"c1", "c1", "c2"} {
		must(p.Mount(ctx, "db", user))(t)
	}
	wants(t, p.Create(ctx, "db", map[string]string{"read_only": "true"}), storage.ErrConflict, "2 containers")
	must(none(p.Unmount(ctx, "db", "c1")))(t)
	must(none(p.Unmount(ctx, "db", "c1")))(t)
	p = s.start()
	if path := must(p.Path(ctx, "db"))(t); path == "" {
		t.Fatal("unmounted under the second user")
	}
	s.boot = "2"
	p = s.start()
	if path := must(p.Path(ctx, "db"))(t); path != "" || len(s.machine.Left()) > 0 {
		t.Errorf("after the host has started it is at %q, and there is %v", path, s.machine.Left())
	}
	_, err := p.Mount(ctx, "db", "")
	wants(t, err, storage.ErrInvalid)
	_, err = p.Mount(ctx, "other", "c1")
	wants(t, err, storage.ErrNotFound, "docker volume create")
	must(none(p.Unmount(ctx, "other", "c1")))(t)
}

// TestDeviceTakenAway: somebody has detached the device by force under a container. A second container must not share the
// mount of a device that is gone, nor have another one mounted over it, until the first has stopped. The lines that keep
// it are the first two cases of Plugin.show (tried: without the second the volume is unmounted under the first container).
func TestDeviceTakenAway(t *testing.T) {
	ctx, w := t.Context(), csitest.New()
	s := newServer(t, w, "host-a")
	p := s.start()
	must(none(p.Create(ctx, "db", map[string]string{"size": "1GiB"})))(t)
	must(p.Mount(ctx, "db", "c1"))(t)
	must(none((&gateway{s.machine, s.id, w.Client()}).Detach(ctx, "db", true)))(t)
	before := len(must(s.machine.Mounts().List())(t))
	_, err := p.Mount(ctx, "db", "c2")
	wants(t, err, storage.ErrConflict, "still use", "stop them")
	if n := len(must(s.machine.Mounts().List())(t)); n != before {
		t.Errorf("%d mounts, there were %d", n, before)
	}
	must(none(p.Unmount(ctx, "db", "c1")))(t)
	must(p.Mount(ctx, "db", "c2"))(t)
	must(p.Mount(ctx, "db", "c3"))(t)
	must(none(p.Unmount(ctx, "db", "c2")))(t)
	must(none(p.Unmount(ctx, "db", "c3")))(t)
	if left := s.machine.Left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestMountLeftOver: what is mounted where the volume belongs, is not the volume, and that nobody uses, goes first. Guards the third case
// of Plugin.show (tried without).
func TestMountLeftOver(t *testing.T) {
	ctx, w := t.Context(), csitest.New()
	s := newServer(t, w, "host-a")
	p := s.start()
	for _, name := range []string{"db", "other"} {
		must(none(p.Create(ctx, name, map[string]string{"size": "1GiB"})))(t)
	}
	path, other := must(p.Mount(ctx, "db", "c1"))(t), must(p.Mount(ctx, "other", "c2"))(t)
	must(none(p.Unmount(ctx, "db", "c1")))(t)
	must(none(s.machine.Mounts().Bind(ctx, other, path, false)))(t)
	if got := must(p.Mount(ctx, "db", "c3"))(t); got != path {
		t.Fatalf("mounted at %q, before at %q", got, path)
	}
	at := map[string][]uint64{}
	for _, m := range must(s.machine.Mounts().List())(t) {
		at[m.Path] = append(at[m.Path], m.Device)
	}
	if len(at[path]) != 1 || at[path][0] == at[other][0] {
		t.Errorf("at %s are the devices %v, and at %s is %v", path, at[path], other, at[other])
	}
	must(none(p.Unmount(ctx, "db", "c3")))(t)
	must(none(p.Unmount(ctx, "other", "c2")))(t)
	if left := s.machine.Left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestCopy: `docker cp` into a running container mounts and unmounts under the container's own id. The container keeps
// its device, and when it ends the volume is given up.
func TestCopy(t *testing.T) {
	ctx, w := t.Context(), csitest.New()
	s := newServer(t, w, "host-a")
	p := s.start()
	must(none(p.Create(ctx, "db", map[string]string{"size": "1GiB"})))(t)
	path := must(p.Mount(ctx, "db", "c1"))(t)
	must(none(s.machine.Mounts().Bind(t.Context(), path, "/container/data", false)))(t)
	for range 2 {
		must(p.Mount(ctx, "db", "c1"))(t)
		must(none(p.Unmount(ctx, "db", "c1")))(t)
		if list := must(s.machine.Attachments(ctx))(t); len(list) != 1 || list[0].State != host.StateReady {
			t.Fatalf("the container's device: %+v", list)
		}
	}
	must(none(s.machine.Mounts().Unmount(t.Context(), "/container/data")))(t)
	must(none(s.machine.Mounts().Remove(t.Context(), "/container/data")))(t)
	must(none(p.Unmount(ctx, "db", "c1")))(t)
	if left := s.machine.Left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestUnwritten: a user that cannot be written down gets nothing, and the volume is left to others.
func TestUnwritten(t *testing.T) {
	ctx, w := t.Context(), csitest.New()
	a, b := newServer(t, w, "host-a"), newServer(t, w, "host-b")
	p, q := a.start(), b.start()
	must(none(p.Create(ctx, "db", map[string]string{"size": "1GiB"})))(t)
	must(none(q.Create(ctx, "db", nil)))(t)
	w.Fail(func(step int) csitest.When { // nothing fails; with the first step the state directory is full
		if step == 1 {
			must(none(os.Mkdir(p.records.path("db")+".tmp", 0o700)))(t)
		}
		return csitest.Never
	})
	_, err := p.Mount(ctx, "db", "c1")
	wants(t, err, storage.ErrIO, p.records.path("db"))
	w.Fail(nil)
	must(q.Mount(ctx, "db", "c2"))(t)
	if left := a.machine.Left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestConcurrently: containers that start and end at the same time leave nothing behind, and never see the volume go.
func TestConcurrently(t *testing.T) {
	ctx, w := t.Context(), csitest.New()
	s := newServer(t, w, "host-a")
	p := s.start()
	must(none(p.Create(ctx, "db", map[string]string{"size": "1GiB"})))(t)
	var containers sync.WaitGroup
	for i := range 8 {
		containers.Go(func() {
			for n := range 20 {
				user := fmt.Sprintf("c%d-%d", i, n)
				if _, err := p.Mount(ctx, "db", user); err != nil {
					t.Error(err)
				}
				if path, err := p.Path(ctx, "db"); err != nil || path == "" {
					t.Errorf("container %s sees the volume at %q (%v)", user, path, err)
				}
				if err := p.Unmount(ctx, "db", user); err != nil {
					t.Error(err)
				}
			}
		})
	}
	containers.Wait()
	if left := s.machine.Left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if len(p.locks.held) > 0 {
		t.Errorf("locks left: %v", p.locks.held)
	}
	unlock := must(p.locks.lock(ctx, "db"))(t)
	defer unlock()
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err := p.Mount(ended, "db", "c")
	wants(t, err, storage.ErrUnavailable)
}

// TestSharedReadOnly: two hosts read one volume.
func TestSharedReadOnly(t *testing.T) {
	ctx, w := t.Context(), csitest.New()
	a, b := newServer(t, w, "host-a"), newServer(t, w, "host-b")
	p, q := a.start(), b.start()
	must(none(p.Create(ctx, "db", map[string]string{"size": "1GiB"})))(t)
	must(p.Mount(ctx, "db", "c1"))(t)
	must(none(p.Unmount(ctx, "db", "c1")))(t)
	shared := map[string]string{"access": "shared", "read_only": "true"}
	for _, x := range []*Plugin{p, q} {
		must(none(x.Create(ctx, "db", shared)))(t)
		must(x.Mount(ctx, "db", "c"))(t)
	}
	_, err := w.Cluster().Attach(ctx, api.NewAttachment{Volume: storage.VolumeRef{Name: "db"}, Access: storage.AccessShared,
		Holder: storage.Holder{ID: "writer", Kind: storage.HolderHost}})
	wants(t, err, storage.ErrConflict)
}

// TestNamesake: a volume that was deleted and made again behind the plugin's back is another one.
func TestNamesake(t *testing.T) {
	ctx, w := t.Context(), csitest.New()
	s := newServer(t, w, "host-a")
	p := s.start()
	must(none(p.Create(ctx, "db", map[string]string{"size": "1GiB"})))(t)
	v := must(w.Cluster().Volume(ctx, "db"))(t)
	must(none(w.Cluster().DeleteVolume(ctx, "db", v.ID)))(t)
	must(w.Cluster().CreateVolume(ctx, api.NewVolume{Name: "db", SizeBytes: gib}))(t)
	_, err := p.Get(ctx, "db")
	wants(t, err, storage.ErrNotFound)
	_, err = p.Mount(ctx, "db", "c1")
	wants(t, err, storage.ErrNotFound, "another one")
	if left := s.machine.Left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	must(none(p.Remove(ctx, "db")))(t)
	must(w.Cluster().Volume(ctx, "db"))(t) // it is not this host's to delete
	wants(t, p.Create(ctx, "other", nil), storage.ErrInvalid, "size=")
}

// TestWithoutCluster: what is known here is shown.
func TestWithoutCluster(t *testing.T) {
	ctx, w := t.Context(), csitest.New()
	p := newServer(t, w, "host-a").start()
	must(none(p.Create(ctx, "db", map[string]string{"size": "1GiB"})))(t)
	path := must(p.Mount(ctx, "db", "c1"))(t)
	w.Fail(func(int) csitest.When { return csitest.Before })
	if v := must(p.Get(ctx, "db"))(t); !v.Stale || v.Mountpoint != path {
		t.Errorf("%+v", v)
	}
	if list := must(p.List(ctx))(t); len(list) != 1 || !list[0].Stale {
		t.Errorf("%+v", list)
	}
}

func TestOptions(t *testing.T) {
	for _, tc := range []struct {
		given map[string]string
		want  options
		size  int64
		says  string // of the error
	}{
		{nil, options{Access: storage.AccessExclusive}, 0, ""},
		{map[string]string{"size": "1GiB", "fs": "xfs", "take_over": "1"}, options{Access: storage.AccessExclusive, FSType: "xfs", TakeOver: true}, gib, ""},
		{map[string]string{"access": "shared", "read_only": "true"}, options{Access: storage.AccessReaders, ReadOnly: true}, 0, ""},
		{map[string]string{"access": "readers"}, options{Access: storage.AccessReaders, ReadOnly: true}, 0, ""},
		{map[string]string{"access": "shared"}, options{}, 0, "access=readers"},
		{map[string]string{"access": "all"}, options{}, 0, "exclusive or readers"},
		{map[string]string{"fs": "zfs"}, options{}, 0, "ext4 or xfs"},
		{map[string]string{"size": "much"}, options{}, 0, "size=much"},
		{map[string]string{"size": "1GB"}, options{}, 0, "option size=1GB: \"GB\" may mean powers of 1000 or of 1024"},
		{map[string]string{"size": "1.5"}, options{}, 0, "whole number of bytes"},
		{map[string]string{"size": "1000"}, options{}, 0, "size=1000"},
		{map[string]string{"take_over": "please", "colour": "red"}, options{}, 0, "take_over=please"},
		{map[string]string{"colour": "red"}, options{}, 0, "no such option"},
	} {
		o, size, err := parseOptions("volume db", tc.given)
		if tc.says != "" {
			wants(t, err, storage.ErrInvalid, tc.says)
		} else if err != nil || o != tc.want || size != tc.size {
			t.Errorf("%v: %+v, %d, %v", tc.given, o, size, err)
		}
	}
}

// TestRecords: a record that cannot be one is damage, and says what to do.
func TestRecords(t *testing.T) {
	r := must(openRecords(filepath.Join(t.TempDir(), "volumes"), "1"))(t)
	must(none(r.save(record{Volume: "db", ID: 7, Users: []string{"c1"}})))(t)
	if rec, ok, err := r.load("db"); err != nil || !ok || rec.ID != 7 || len(rec.Users) != 1 {
		t.Errorf("%+v %v %v", rec, ok, err)
	}
	for _, content := range []string{"", "{", `{"volume":"other"}`, strings.Repeat(" ", maxRecordBytes+1)} {
		if err := os.WriteFile(r.path("db"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := r.load("db")
		wants(t, err, storage.ErrCorrupt, r.path("db"))
	}
	must(none(r.drop("db")))(t)
	must(none(r.drop("db")))(t)
	if names := must(r.names())(t); len(names) > 0 {
		t.Errorf("left: %v", names)
	}
}

// TestTooLarge: a volume that the cluster could never hold, or has no room for, is not made, and what was asked for can be forgotten.
func TestTooLarge(t *testing.T) {
	ctx, w := t.Context(), csitest.New()
	w.Cluster().Edit(func(_ *[]api.Node, _ *[]api.Group, status *api.Status) { status.UsableBytes = gib })
	s := newServer(t, w, "host-a")
	p := s.start()
	wants(t, p.Create(ctx, "db", map[string]string{"size": "2G"}), storage.ErrInvalid, "never be filled")
	for i := range 10 {
		must(w.Cluster().CreateVolume(ctx, api.NewVolume{Name: fmt.Sprintf("v%d", i), SizeBytes: gib}))(t)
	}
	wants(t, p.Create(ctx, "web", map[string]string{"size": "1G"}), storage.ErrNoSpace)
	for _, name := range []string{"db", "web"} {
		must(none(p.Remove(ctx, name)))(t)
	}
	if left := s.left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestTooSmall: a volume that its file system does not fit is not made.
func TestTooSmall(t *testing.T) {
	ctx, w := t.Context(), csitest.New()
	p := newServer(t, w, "host-a").start()
	wants(t, p.Create(ctx, "db", map[string]string{"size": "100M", "fs": "xfs"}), storage.ErrInvalid, "300 MiB")
	wants(t, p.Create(ctx, "db", map[string]string{"size": "4096"}), storage.ErrInvalid, "8 MiB")
	_, err := w.Cluster().Volume(ctx, "db")
	wants(t, err, storage.ErrNotFound)
}

// behind is a cluster whose nodes that answer have old copies of the catalog: of a name that was given again they know the volume
// before.
type behind struct {
	Cluster
	back storage.VolumeID
}

func (b behind) Volume(ctx context.Context, name string) (api.Volume, error) {
	v, err := b.Cluster.Volume(ctx, name)
	v.ID -= b.back
	return v, err
}

// TestOldAnswer: a volume whose name was another one's before is not taken for gone, nor is the other one taken in for it, because a node
// has not heard of it yet.
func TestOldAnswer(t *testing.T) {
	ctx, w := t.Context(), csitest.New()
	must(w.Cluster().CreateVolume(ctx, api.NewVolume{Name: "before", SizeBytes: gib}))(t)
	p := newServer(t, w, "host-a").start()
	must(none(p.Create(ctx, "db", map[string]string{"size": "1GiB"})))(t)
	cluster := p.config.Cluster
	p.config.Cluster = behind{cluster, 1}
	if v := must(p.Get(ctx, "db"))(t); !v.Stale {
		t.Errorf("%+v", v)
	}
	wants(t, p.Create(ctx, "db", nil), storage.ErrUnavailable, "old")
	p.config.Cluster = cluster
	must(none(p.Remove(ctx, "db")))(t)
	if _, err := w.Cluster().Volume(ctx, "db"); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("it is there after its maker has removed it: %v", err)
	}
}
