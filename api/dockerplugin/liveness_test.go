package dockerplugin

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storaged/storaged/api/csi/csitest"
	"github.com/storaged/storaged/internal/unixsocket"
)

// TestAnswers: a plugin that answers lives, whatever the cluster does; one that takes connections and says nothing does not, as a stopped
// process does, for which the kernel takes them.
func TestAnswers(t *testing.T) {
	for name, tc := range map[string]struct {
		serve func(t *testing.T, l net.Listener)
		says  string // "": it lives
	}{
		"the plugin": {func(t *testing.T, l net.Listener) {
			ctx, cancel := context.WithCancel(context.Background())
			served := make(chan error, 1)
			go func() { served <- NewServer(newServer(t, csitest.New(), "host-a").start(), nil).Serve(ctx, l) }()
			t.Cleanup(func() { cancel(); _ = <-served })
		}, ""},
		"nobody":               {func(_ *testing.T, l net.Listener) { _ = l.Close() }, "connect"},
		"who says nothing":     {func(*testing.T, net.Listener) {}, "deadline"},
		"a plugin of networks": {func(t *testing.T, l net.Listener) { answerWith(t, l, `{"Implements":["NetworkDriver"]}`) }, "NetworkDriver"},
		"who says too much": {func(t *testing.T, l net.Listener) {
			answerWith(t, l, `{"Implements":["`+strings.Repeat("x", 1<<20)+`"]}`)
		}, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "p.sock")
			l := must(unixsocket.Listen(socket))(t)
			t.Cleanup(func() { _ = l.Close() })
			tc.serve(t, l)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if tc.says == "deadline" { // the only one that waits for its end
				ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
				defer cancel()
			}
			switch err := Answers(ctx, socket); {
			case tc.says == "" && err != nil:
				t.Error(err)
			case tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), socket)):
				t.Errorf("%v, want %q in it", err, tc.says)
			}
		})
	}
}

func answerWith(t *testing.T, l net.Listener, text string) {
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) })}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() { _ = s.Close(); <-ended })
}
