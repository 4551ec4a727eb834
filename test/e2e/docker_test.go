//go:build e2e && devices && docker

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/testcluster"
	"github.com/storaged/storaged/internal/testcluster/hosttest"
)

// dockerServer is a server with a Docker engine: a gateway, a plugin and a dockerd of its own.
type dockerServer struct {
	*hosttest.Host
	driver     string // what its engine calls the plugin
	socket     string // of the engine
	pluginArgs []string
	plugin     *exec.Cmd
	log        *os.File
}

const containerImage = "busybox:e2e"

// startDocker starts a server.
func startDocker(t *testing.T, c *testcluster.Cluster, name string) *dockerServer {
	t.Helper()
	g := startHost(t, c, name)
	dir, err := os.MkdirTemp("", "docker") // t.TempDir's names are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	s := &dockerServer{Host: g, driver: fmt.Sprintf("storaged-e2e-%d-%s", os.Getpid(), name), socket: filepath.Join(dir, "docker.sock")}
	if s.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if text, err := os.ReadFile(s.log.Name()); err == nil && t.Failed() {
			t.Logf("plugin and engine of %s:\n%s", name, text)
		}
		_ = s.log.Close()
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	pluginSocket := filepath.Join("/run/docker/plugins", s.driver+".sock") // where every engine looks
	s.pluginArgs = []string{"docker-plugin", "--socket", pluginSocket, "--state-dir", filepath.Join(dir, "plugin"),
		"--gateway", g.Args[slices.Index(g.Args, "--socket")+1]}
	s.startPlugin(t)
	t.Cleanup(func() {
		s.endPlugin(t, syscall.SIGTERM)
		_ = os.Remove(pluginSocket) // the listener has, if it was closed
	})
	s.startEngine(t, dir)
	s.importImage(t, dir)
	return s
}

func (s *dockerServer) startPlugin(t *testing.T) {
	t.Helper()
	s.plugin = exec.Command(*storagedFlag, s.pluginArgs...)
	s.plugin.Stdout, s.plugin.Stderr = s.log, s.log
	if err := s.plugin.Start(); err != nil {
		t.Fatal(err)
	}
}

func (s *dockerServer) endPlugin(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := s.plugin.Process.Signal(sig); err != nil {
		t.Error(err)
	}
	if err := s.plugin.Wait(); err != nil && sig != syscall.SIGKILL {
		t.Errorf("the plugin ended with %v", err)
	}
}

// startEngine starts dockerd below dir and waits until it answers.
func (s *dockerServer) startEngine(t *testing.T, dir string) {
	t.Helper()
	engine := exec.Command("dockerd", "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"), "-H", "unix://"+s.socket,
		"--pidfile", filepath.Join(dir, "pid"), "--containerd", "", "--iptables=false", "--bridge=none", "--storage-driver", "vfs")
	engine.Stdout, engine.Stderr = s.log, s.log
	if err := engine.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = engine.Process.Signal(syscall.SIGTERM) // it may have ended
		cut := time.AfterFunc(30*time.Second, func() { _ = engine.Process.Kill() })
		defer cut.Stop()
		if err := engine.Wait(); err != nil {
			t.Errorf("dockerd ended with %v", err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if testcluster.Poll(ctx, 100*time.Millisecond, func() bool {
		return exec.CommandContext(ctx, "docker", "-H", "unix://"+s.socket, "info").Run() == nil
	}) != nil {
		t.Fatal("dockerd does not answer")
	}
}

// importImage makes an image of a static busybox.
func (s *dockerServer) importImage(t *testing.T, dir string) {
	t.Helper()
	root := filepath.Join(dir, "root")
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	run(t, "mkdir", "-p", filepath.Join(root, "bin"))
	run(t, "cp", "-L", busybox, filepath.Join(root, "bin", "busybox"))
	for _, tool := range []string{"sh", "cat", "dd", "sleep", "sync"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", tool)); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "tar", "-C", root, "-cf", filepath.Join(dir, "image.tar"), ".")
	s.docker(t, "import", filepath.Join(dir, "image.tar"), containerImage)
}

// try runs the docker command against the server's engine.
func (s *dockerServer) try(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "docker", append([]string{"-H", "unix://" + s.socket}, args...)...).CombinedOutput()
	return string(out), err
}

func (s *dockerServer) docker(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.try(t, args...)
	if err != nil {
		t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// container runs a script in a new container with the volume at /data, and returns what it printed.
func (s *dockerServer) container(t *testing.T, script string) string {
	t.Helper()
	return s.docker(t, "run", "--rm", "--network", "none", "-v", "db:/data", containerImage, "/bin/sh", "-ec", script)
}

// TestDockerOnTwoServers: what a container on Server A has written outlives it, is there for the next one, and for one on
// Server B once A has let go. While a container on A runs, B is told who has the volume; it takes it over, and what the
// container on A writes from then on does not land.
func TestDockerOnTwoServers(t *testing.T) {
	c := startWithVolume(t, nil) // another volume than the one that Docker makes
	a, b := startDocker(t, c, "server-a"), startDocker(t, c, "server-b")
	a.docker(t, "volume", "create", "-d", a.driver, "-o", "size=128MiB", "db")
	a.container(t, "echo one > /data/file")
	if got := a.container(t, "cat /data/file"); got != "one\n" {
		t.Fatalf("a new container on A reads %q", got)
	}
	b.docker(t, "volume", "create", "-d", b.driver, "db")
	if got := b.container(t, "cat /data/file; echo two >> /data/file"); got != "one\n" {
		t.Fatalf("a container on B reads %q", got)
	}
	if got := a.container(t, "cat /data/file"); got != "one\ntwo\n" {
		t.Fatalf("a container on A reads %q after B", got)
	}

	a.docker(t, "run", "-d", "--name", "holder", "--network", "none", "-v", "db:/data", containerImage, "/bin/sleep", "1000")
	if got := a.container(t, "cat /data/file"); got != "one\ntwo\n" {
		t.Errorf("a second container on A reads %q", got)
	}
	a.docker(t, "cp", "holder:/data/file", filepath.Join(t.TempDir(), "copy"))
	a.endPlugin(t, syscall.SIGKILL)
	a.startPlugin(t)
	if got := a.docker(t, "exec", "holder", "/bin/sh", "-ec", "cat /data/file; echo three >> /data/file; sync"); got != "one\ntwo\n" {
		t.Errorf("the container on A reads %q after its plugin was killed", got)
	}
	out, err := b.try(t, "run", "--rm", "--network", "none", "-v", "db:/data", containerImage, "/bin/cat", "/data/file")
	if err == nil || !strings.Contains(out, "server-a") || !strings.Contains(out, "take_over=true") {
		t.Fatalf("B is answered %v, %q; want who has the volume and what to do", err, out)
	}

	b.docker(t, "volume", "rm", "db") // B did not make it: it is forgotten there
	b.docker(t, "volume", "create", "-d", b.driver, "-o", "take_over=true", "db")
	begun := time.Now()
	got := b.container(t, "cat /data/file; echo four >> /data/file")
	t.Logf("B has run a container on the volume %v after it began to take it over", time.Since(begun).Round(time.Millisecond))
	if got != "one\ntwo\nthree\n" {
		t.Errorf("a container on B reads %q after the takeover", got)
	}
	if out, err := a.try(t, "exec", "holder", "/bin/dd", "if=/dev/zero", "of=/data/late", "bs=4096", "count=1", "conv=fsync"); err == nil {
		t.Errorf("the container on A writes after the takeover: %q", out)
	}
	a.docker(t, "rm", "-f", "holder")
	if got := a.container(t, "cat /data/file; [ ! -e /data/late ]"); got != "one\ntwo\nthree\nfour\n" {
		t.Errorf("a new container on A reads %q", got)
	}

	b.docker(t, "volume", "rm", "db")
	a.docker(t, "volume", "rm", "db")
	if _, err := apiClient(t, c).Volume(t.Context(), "db"); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("the volume after its removal: %v", err)
	}
}
