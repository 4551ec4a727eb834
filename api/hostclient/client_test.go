package hostclient

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/host"
)

// scripted is a gateway that answers what a test has put in, and notes what it was asked.
type scripted struct {
	request    host.Request
	detached   string
	forced     bool
	refreshed  int64
	asked      storage.AttachmentID
	down       bool
	attachment host.Attachment
	info       host.Info
	err        error
}

func (s *scripted) Attach(_ context.Context, r host.Request) (host.Attachment, error) {
	s.request = r
	return s.attachment, s.err
}

func (s *scripted) Detach(_ context.Context, volume string, force bool) error {
	s.detached, s.forced = volume, force
	return s.err
}

func (s *scripted) Refresh(_ context.Context, _ string, sizeBytes int64) (host.Attachment, error) {
	s.refreshed = sizeBytes
	return s.attachment, s.err
}

func (s *scripted) Allocated(_ context.Context, _ string, attachmentID storage.AttachmentID) (bool, error) {
	s.asked = attachmentID
	return s.err == nil, s.err
}

func (s *scripted) HostDown(context.Context) error {
	s.down = true
	return s.err
}

func (s *scripted) Attachments(context.Context) ([]host.Attachment, error) {
	return []host.Attachment{s.attachment}, s.err
}

func (s *scripted) Info(context.Context) (host.Info, error) { return s.info, s.err }

// serve serves g on a socket of the test's own and returns a client of it.
func serve(t *testing.T, g host.Gateway) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "gateway.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- host.NewServer(g, nil).Serve(ctx, listener) }()
	c, err := New(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return c
}

var full = host.Attachment{Volume: "db", VolumeID: 7, ID: 8, Generation: 9, Access: storage.AccessShared, ReadOnly: true,
	Via: host.ViaFUSE, Device: "/dev/loop3", Link: "/run/storaged/disk/db", SizeBytes: 1 << 30, State: host.StateFailed,
	Reason: "taken over", Since: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)}

func TestEveryFieldTravels(t *testing.T) {
	cluster, err := storage.ParseClusterID("00112233-4455-6677-8899-aabbccddeeff")
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{attachment: full, info: host.Info{HostID: "web-1", Zone: "a", Version: "v1", Endpoints: []string{"n1:7000"},
		Vias: []host.Via{host.ViaNBD, host.ViaFUSE}, Cluster: cluster}}
	c := serve(t, s)
	want := host.Request{Volume: "db", Access: storage.AccessShared, ReadOnly: true, Via: host.ViaFUSE, AttachmentID: 5}
	got, err := c.Attach(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(full, got) + cmp.Diff(want, s.request); diff != "" {
		t.Error(diff)
	}
	if _, err := c.Attach(t.Context(), host.Request{Volume: "db", TakeOver: true}); err != nil {
		t.Fatal(err)
	}
	want = host.Request{Volume: "db", Access: storage.AccessExclusive, Via: host.ViaAuto, TakeOver: true}
	if diff := cmp.Diff(want, s.request); diff != "" {
		t.Error(diff)
	}
	if err := c.Detach(t.Context(), "db", true); err != nil || s.detached != "db" || !s.forced {
		t.Errorf("Detach: %v, %q, %v", err, s.detached, s.forced)
	}
	if a, err := c.Refresh(t.Context(), "db", 4096); err != nil || a.SizeBytes != full.SizeBytes || s.refreshed != 4096 {
		t.Errorf("Refresh: %v, %v, %d", a, err, s.refreshed)
	}
	if err := c.HostDown(t.Context()); err != nil || !s.down {
		t.Errorf("HostDown: %v, told: %t", err, s.down)
	}
	if any, err := c.Allocated(t.Context(), "db", 8); err != nil || !any || s.asked != 8 {
		t.Errorf("Allocated: %t, %v, of attachment %d", any, err, s.asked)
	}
	list, err := c.Attachments(t.Context())
	if diff := cmp.Diff([]host.Attachment{full}, list); err != nil || diff != "" {
		t.Error(err, diff)
	}
	info, err := c.Info(t.Context())
	if diff := cmp.Diff(s.info, info); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestErrorsKeepTheirKindAndText(t *testing.T) {
	for _, kind := range storage.Kinds() {
		s := &scripted{err: storage.E("attach", kind, "volume db", errors.New("web-2 has it"))}
		_, err := serve(t, s).Attach(t.Context(), host.Request{Volume: "db"})
		if storage.KindOf(err) != kind || err.Error() != s.err.Error() {
			t.Errorf("kind %v arrived as %v: %v", kind, storage.KindOf(err), err)
		}
	}
}

func TestRequestsThatCannotSucceed(t *testing.T) {
	for name, r := range map[string]host.Request{
		"name":      {Volume: "No"},
		"access":    {Volume: "db", Access: "some"},
		"via":       {Volume: "db", Via: "ublk"},
		"take over": {Volume: "db", TakeOver: true, AttachmentID: 3},
	} {
		if err := r.Validate(); !errors.Is(err, storage.ErrInvalid) {
			t.Errorf("%s: %v, want KindInvalid", name, err)
		}
	}
}

func TestNoGateway(t *testing.T) {
	c, err := New(filepath.Join(t.TempDir(), "none.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, err = c.Info(t.Context())
	if !errors.Is(err, storage.ErrUnavailable) || !strings.Contains(err.Error(), "systemctl start storaged-gateway") {
		t.Errorf("%v: want KindUnavailable and the next step", err)
	}
}

// hanging is a gateway that gives no answer. It implements host.Gateway.
type hanging struct{ scripted }

func (hanging) Detach(ctx context.Context, _ string, _ bool) error {
	<-ctx.Done()
	<-time.After(100 * time.Millisecond) // the caller's deadline comes first
	return ctx.Err()
}

// Whoever has waited for long is told for whom, and what to do.
func TestNoAnswerInTime(t *testing.T) {
	c := serve(t, &hanging{})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := c.Detach(ctx, "db", false)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "volume db") || !strings.Contains(err.Error(), "storagectl attachments") {
		t.Errorf("got %v", err)
	}
}
