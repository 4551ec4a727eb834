package csi_test

import (
	"context"
	"io/fs"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kubelet "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/storaged/storaged/api/csi"
)

// TestRegistration: a kubelet that has refused the driver finds another socket, as it asks each only once; when the driver
// ends there is none.
func TestRegistration(t *testing.T) {
	dir, err := os.MkdirTemp("", "csi") // t.TempDir's is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	r := csi.Registration{Name: csi.DefaultName, Endpoint: "/var/lib/kubelet/plugins/csi.storaged.io/csi.sock", Dir: dir,
		Retry: 20 * time.Millisecond} // more than a tick of the clock of files, by which the sockets are told apart
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- csi.Register(ctx, r) }()

	var last fs.FileInfo
	for _, registered := range []bool{false, false, true} {
		last = ask(t, r, last, registered)
	}
	if again, err := os.Lstat(r.Socket()); err != nil || !os.SameFile(last, again) {
		t.Errorf("the registered driver's socket has changed (%v)", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(r.Socket()); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}

// TestRegistersAnew: a kubelet keeps what it was told of the host, so what has changed since is told by another registration. The line is the
// one in serve that looks.
func TestRegistersAnew(t *testing.T) {
	dir, err := os.MkdirTemp("", "csi") // t.TempDir's is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	var changed atomic.Bool
	r := csi.Registration{Name: csi.DefaultName, Endpoint: "/csi.sock", Dir: dir, Retry: 20 * time.Millisecond, LookEvery: 5 * time.Millisecond,
		Changed: func(context.Context) string {
			if changed.CompareAndSwap(true, false) {
				return "the host has another name"
			}
			return ""
		}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- csi.Register(ctx, r) }()
	first := ask(t, r, nil, true)
	for range 2 {
		changed.Store(true)
		first = ask(t, r, first, true)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// ask is what a kubelet does with a socket that is not last.
func ask(t *testing.T, r csi.Registration, last fs.FileInfo, registered bool) fs.FileInfo {
	t.Helper()
	deadline, tick := time.After(20*time.Second), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	info, err := os.Lstat(r.Socket())
	for ; err != nil || last != nil && info.ModTime().Equal(last.ModTime()); info, err = os.Lstat(r.Socket()) {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("there is no new socket: %v", err)
		}
	}
	conn, err := grpc.NewClient("unix://"+r.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client, ctx := kubelet.NewRegistrationClient(conn), t.Context()
	plugin, err := client.GetInfo(ctx, &kubelet.InfoRequest{}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	if plugin.GetType() != "CSIPlugin" || plugin.GetName() != r.Name || plugin.GetEndpoint() != r.Endpoint ||
		len(plugin.GetSupportedVersions()) != 1 || plugin.GetSupportedVersions()[0] != "1.0.0" {
		t.Errorf("the kubelet was told %v", plugin)
	}
	// The answer to a refusal may be lost: the server ends by it.
	_, err = client.NotifyRegistrationStatus(ctx, &kubelet.RegistrationStatus{PluginRegistered: registered, Error: "no gateway answers"})
	if err != nil && registered {
		t.Error(err)
	}
	return info
}
