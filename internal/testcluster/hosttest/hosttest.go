// Package hosttest starts the gateways of hosts for tests: they end with the test, with what is attached.
package hosttest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/api/hostclient"
	"github.com/storaged/storaged/internal/testcluster"
)

// Host is a `storaged gateway`, as on a host of its own. It ends with the test, with what is attached, and shows its log when that failed.
type Host struct {
	*hostclient.Client
	Socket string    // of its API
	Args   []string  // of storaged: gateway, and its flags
	Cmd    *exec.Cmd // nil: it does not run

	line []string // prefix and binary
	log  *os.File
}

// Options say how a host is started.
type Options struct {
	Binary string   // storaged; required
	Name   string   // its --host-id; required
	Prefix []string // before its command
	Args   []string // more flags
}

// Start starts the gateway of a host of a cluster.
func Start(t *testing.T, c *testcluster.Cluster, o Options) *Host {
	t.Helper()
	dir := t.TempDir()
	var endpoints []string
	for _, n := range c.Nodes() {
		endpoints = append(endpoints, n.API)
	}
	log, err := os.Create(filepath.Join(dir, "gateway.log"))
	if err != nil {
		t.Fatal(err)
	}
	h := &Host{Socket: filepath.Join(dir, "gateway.sock"), line: append(slices.Clone(o.Prefix), o.Binary), log: log}
	h.Args = append([]string{"gateway", "--endpoint", strings.Join(endpoints, ","), "--state-dir", filepath.Join(dir, "state"), "--socket", h.Socket,
		"--link-dir", filepath.Join(dir, "disk"), "--host-id", o.Name}, o.Args...)
	if h.Client, err = hostclient.New(h.Socket); err != nil {
		t.Fatal(err)
	}
	h.Start(t)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
		defer cancel()
		if h.Cmd == nil {
			h.Start(t)
		}
		list, err := h.Attachments(ctx)
		for _, a := range list {
			err = errors.Join(err, h.Detach(ctx, a.Volume, true))
		}
		if err != nil {
			t.Errorf("clean up: %v", err)
		}
		h.End(t, syscall.SIGTERM)
		_ = h.Close()
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("gateway %s:\n%s", o.Name, text)
		}
		_ = log.Close()
	})
	return h
}

// Start starts the gateway's process and waits until it answers.
func (h *Host) Start(t *testing.T) {
	t.Helper()
	line := slices.Concat(h.line, h.Args)
	h.Cmd = exec.Command(line[0], line[1:]...)
	h.Cmd.Stdout, h.Cmd.Stderr = h.log, h.log
	if err := h.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 20*time.Second)
	defer cancel()
	if testcluster.Poll(ctx, 10*time.Millisecond, func() bool { _, err := h.Info(ctx); return err == nil }) != nil {
		t.Fatal("the gateway does not answer")
	}
}

// End ends the gateway's process by a signal.
func (h *Host) End(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := h.Cmd.Process.Signal(sig); err != nil {
		t.Error(err)
	}
	if err := h.Cmd.Wait(); err != nil && sig != syscall.SIGKILL {
		t.Errorf("the gateway ended with %v", err)
	}
	h.Cmd = nil
}

// LogText returns what the gateway has logged.
func (h *Host) LogText(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(h.log.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// MustAttach attaches a volume.
func (h *Host) MustAttach(t *testing.T, r host.Request) host.Attachment {
	t.Helper()
	a, err := h.Attach(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
