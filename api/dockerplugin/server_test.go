package dockerplugin

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storaged/storaged/api/csi/csitest"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/api/hostfs"
	"github.com/storaged/storaged/internal/unixsocket"
)

// TestServer speaks Docker's protocol to the plugin over its socket.
func TestServer(t *testing.T) {
	p := newServer(t, csitest.New(), "host-a").start()
	socket := filepath.Join(t.TempDir(), "storaged.sock")
	l := must(unixsocket.Listen(socket))(t)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- NewServer(p, nil).Serve(ctx, l) }()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	at := p.mountpoint("db")
	for _, tc := range []struct{ call, body, want string }{
		{"Plugin.Activate", `{}`, `VolumeDriver`},
		{"VolumeDriver.Capabilities", `{}`, `"Scope":"global"`},
		{"VolumeDriver.Get", `{"Name":"db"}`, `"Err":"look up volume db: `},
		{"VolumeDriver.Create", `{"Name":"db","Opts":{"size":"1GiB"}}`, `{}`},
		{"VolumeDriver.Create", `{"Name":"a/b"}`, `"Err":"check volume name`},
		{"VolumeDriver.Create", `{"Name":"proj_db","Opts":{"size":"1GiB"}}`, `{}`},
		{"VolumeDriver.Get", `{"Name":"proj_db"}`, `"Name":"proj_db"`},
		{"VolumeDriver.Get", `{"Name":"proj_db"}`, `"volume":"proj-db-`},
		{"VolumeDriver.List", `{}`, `"Name":"proj_db"`},
		{"VolumeDriver.Mount", `{"Name":"db","ID":"c1"}`, `"Mountpoint":"` + at + `"`},
		{"VolumeDriver.Path", `{"Name":"db"}`, `"Mountpoint":"` + at + `"`},
		{"VolumeDriver.Get", `{"Name":"db"}`, `host-a (exclusive, since `},
		{"VolumeDriver.List", `{}`, `"Name":"db"`},
		{"VolumeDriver.Remove", `{"Name":"db"}`, `in use here by 1 containers`},
		{"VolumeDriver.Unmount", `{"Name":"db","ID":"c1"}`, `{}`},
		{"VolumeDriver.Remove", `{"Name":"db"}`, `{}`},
	} {
		r := must(http.NewRequestWithContext(t.Context(), http.MethodPost, "http://plugin/"+tc.call, strings.NewReader(tc.body)))(t)
		answer, err := (&http.Client{Transport: transport}).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		var body json.RawMessage
		err = json.NewDecoder(answer.Body).Decode(&body)
		_ = answer.Body.Close() // it was read
		if err != nil || !strings.Contains(string(body), tc.want) {
			t.Errorf("%s %s: %s (%v), want %s in it", tc.call, tc.body, body, err, tc.want)
		}
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	s := NewServer(p, nil)
	s.stop()
	if _, err := s.call(t.Context(), "List", request{}); err == nil || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("a call after the end: %v", err)
	}
}

// TestHungTool: a call of Docker's ends in time whatever hangs, and what it has begun is taken back when it has ended, unless another
// call has come for it: Docker does not ask again. The line is the call of settle in Server.call.
func TestHungTool(t *testing.T) {
	for _, what := range []string{"look at", "format", "mount", "unmount"} {
		for _, again := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(t, csitest.New(), "host-a")
				docker := NewServer(s.start(), nil)
				ask := func(call string, r request) error { _, err := docker.call(t.Context(), call, r); return err }
				must(none(ask("Create", request{Name: "db", Opts: map[string]string{"size": "1GiB"}})))(t)
				mount := func() error { return ask("Mount", request{Name: "db", ID: "c1"}) }
				call := mount
				if what == "unmount" {
					must(none(mount()))(t)
					call = func() error { return ask("Unmount", request{Name: "db", ID: "c1"}) }
				}
				release := s.machine.Hang(what)
				if err := call(); !errors.Is(err, hostfs.ErrPending) {
					t.Fatalf("%s: while it hangs: %v", what, err)
				}
				second := make(chan error, 1)
				if again {
					go func() { second <- mount() }()
					time.Sleep(time.Second) // virtual: it waits behind the first
				}
				release()
				if again {
					if err := <-second; err != nil {
						t.Errorf("%s: the next container: %v", what, err)
					}
				}
				docker.running.Wait()
				want := []string{"device of db", "mount " + docker.plugin.mountpoint("db")}
				if !again {
					want = nil
				}
				if left := s.machine.Left(); !slices.Equal(left, want) {
					t.Errorf("%s, another container came: %t: on the host there is %v", what, again, left)
				}
			})
		}
	}
}

// silentGateway answers nothing until it is let go.
type silentGateway struct {
	hostfs.Devices
	asked chan struct{} // a token for each question
}

// Attachments implements hostfs.Devices.
func (g *silentGateway) Attachments(ctx context.Context) ([]host.Attachment, error) {
	g.asked <- struct{}{}
	<-ctx.Done()
	return nil, ctx.Err()
}

// A plugin serves while it takes back what the one before has left, however long that takes: after a restart of the host
// Docker starts containers before the cluster can be reached. The line is the one in Serve that begins Recover.
func TestServesWhileRecovering(t *testing.T) {
	s := newServer(t, csitest.New(), "host-a")
	p := s.start()
	if err := p.Create(t.Context(), "db", map[string]string{"size": "1GiB"}); err != nil {
		t.Fatal(err)
	}
	must(p.Mount(t.Context(), "db", "c1"))(t)
	devices := &silentGateway{asked: make(chan struct{}, 16)}
	p = must(Open(Config{Cluster: s.w.Client(), Devices: devices, Mounts: hostfs.InSlots(s.machine.Mounts()), StateDir: s.dir, Boot: "2"}))(t)
	socket := filepath.Join(t.TempDir(), "storaged.sock")
	l := must(unixsocket.Listen(socket))(t)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- NewServer(p, nil).Serve(ctx, l) }()
	<-devices.asked // Recover waits for the gateway
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	r := must(http.NewRequestWithContext(t.Context(), http.MethodPost, "http://plugin/VolumeDriver.List", strings.NewReader("{}")))(t)
	answer, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close() // that there is one is what counts
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
