package dockerplugin

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/storaged/storaged/api/csi"
	"github.com/storaged/storaged/api/csi/csitest"
)

// TestServer speaks Docker's protocol to the plugin over its socket.
func TestServer(t *testing.T) {
	p := newServer(t, csitest.New(), "host-a").start()
	socket := filepath.Join(t.TempDir(), "storaged.sock")
	l := must(csi.Listen(socket))(t)
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
		{"VolumeDriver.Create", `{"Name":"DB"}`, `"Err":"check volume name`},
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
	d := &driver{NewServer(p, nil), t.Context()}
	d.s.stop()
	if _, err := d.List(); err == nil || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("a call after the end: %v", err)
	}
}
