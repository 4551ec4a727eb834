package csi_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storaged/storaged/api/csi"
	"github.com/storaged/storaged/internal/unixsocket"
)

// TestLiveness: a driver lives when its socket answers a caller that has just come. One whose socket is gone, is somebody
// else's, or accepts and says nothing, does not.
func TestLiveness(t *testing.T) {
	dir, err := os.MkdirTemp("", "csi") // t.TempDir's is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	served := func(socket, name string) {
		l, err := unixsocket.Listen(socket)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		server := csi.NewServer(csi.Config{Identity: csi.NewIdentity(csi.IdentityConfig{Name: name, Version: "1"}), Controller: csi.NewController(csi.ControllerConfig{})})
		go func() { done <- server.Serve(ctx, l) }()
		t.Cleanup(func() { cancel(); <-done })
	}
	hung, err := net.Listen("unix", filepath.Join(dir, "hung"))
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close()
	served(filepath.Join(dir, "fine"), csi.DefaultName)
	served(filepath.Join(dir, "other"), "csi.other.io")
	for socket, want := range map[string]struct {
		code int
		text string
	}{
		"fine": {http.StatusOK, "ok"}, "gone": {http.StatusServiceUnavailable, "gone"}, "hung": {http.StatusServiceUnavailable, "hung"},
		"other": {http.StatusServiceUnavailable, "csi.other.io"},
	} {
		handler := csi.NewLiveness(filepath.Join(dir, socket), csi.DefaultName, time.Second)
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/livez", nil))
		if answer.Code != want.code || !strings.Contains(answer.Body.String(), want.text) {
			t.Errorf("%s: %d %q, want %d and %q", socket, answer.Code, answer.Body, want.code, want.text)
		}
	}
}
