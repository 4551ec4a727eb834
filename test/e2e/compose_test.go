//go:build e2e && devices && docker

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/storaged/storaged/internal/testcluster"
)

// compose is deploy/compose on an engine in a network namespace of its own, where its ports are nobody else's.
type compose struct {
	socket, namespace string
}

// TestCompose: the nodes of deploy/compose become a cluster, which goes on when a node is killed and is there again after `down`
// and `up`, with other containers and other addresses. The image is the binaries on nothing, as deploy/Dockerfile makes it; it is
// not built by it, because that takes images from a registry.
func TestCompose(t *testing.T) {
	c := startComposeEngine(t)
	c.importStoraged(t)
	c.docker(t, "compose", "up", "-d", "--no-build")
	down := func() { c.docker(t, "compose", "down", "-v") }
	defer func() { down() }()
	c.full(t, "a")
	c.docker(t, "compose", "exec", "-T", "a", "/storagectl", "volume", "create", "db", "--size", "1G")
	c.docker(t, "compose", "kill", "-s", "KILL", "c") // whoever kills by hand starts again by hand, whatever the policy
	c.await(t, "b", "db", "volume", "list")
	c.docker(t, "compose", "start", "c")
	c.full(t, "c")
	c.docker(t, "compose", "down")
	c.docker(t, "compose", "up", "-d", "--no-build")
	c.full(t, "b")
	c.await(t, "b", "db", "volume", "list")
}

// full waits until a node says that all is well.
func (c *compose) full(t *testing.T, node string) {
	t.Helper()
	c.await(t, node, "3 of 3 up", "status", "--check")
}

// await waits until storagectl succeeds on a node and says so.
func (c *compose) await(t *testing.T, node, want string, args ...string) {
	t.Helper()
	awaitText(t, "storagectl "+strings.Join(args, " ")+" on "+node, func() string {
		out, err := c.command(append([]string{"compose", "exec", "-T", node, "/storagectl"}, args...)...).CombinedOutput()
		return fmt.Sprintf("%s%v", out, err)
	}, func(text string) bool { return strings.Contains(text, want) && strings.HasSuffix(text, "<nil>") })
}

// command returns `docker ARGS`; "docker compose" is docker-compose 1.29, Debian's.
func (c *compose) command(args ...string) *exec.Cmd {
	program := "docker"
	if args[0] == "compose" {
		program, args = "docker-compose", append([]string{"-p", "storaged", "-f", "../../deploy/compose/compose.yaml"}, args[1:]...)
	}
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+c.socket)
	return cmd
}

func (c *compose) docker(t *testing.T, args ...string) {
	t.Helper()
	if out, err := c.command(args...).CombinedOutput(); err != nil {
		t.Errorf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// importStoraged makes the image of deploy/Dockerfile's last stage.
func (c *compose) importStoraged(t *testing.T) {
	t.Helper()
	dir := filepath.Dir(*storagedFlag)
	pack := exec.Command("tar", "-C", dir, "-c", "storaged", "storagectl")
	load := c.command("import", "-c", `ENTRYPOINT ["/storaged"]`, "-", "storaged")
	var err error
	if load.Stdin, err = pack.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := pack.Start(); err != nil {
		t.Fatal(err)
	}
	out, err := load.CombinedOutput()
	if packed := pack.Wait(); err != nil || packed != nil {
		t.Fatalf("import %s: %v, %v\n%s", dir, err, packed, out)
	}
}

// startComposeEngine starts dockerd in a network namespace, with networks for its containers, and waits until it answers.
func startComposeEngine(t *testing.T) *compose {
	t.Helper()
	dir, err := os.MkdirTemp("", "compose") // t.TempDir's names are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	c := &compose{socket: filepath.Join(dir, "docker.sock"), namespace: fmt.Sprintf("compose-%d", os.Getpid())}
	run(t, "ip", "netns", "add", c.namespace)
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", c.namespace).CombinedOutput(); err != nil {
			t.Errorf("clean up: %v\n%s", err, out)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	run(t, "ip", "-n", c.namespace, "link", "set", "lo", "up")
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	// Not `ip netns exec`: that hides the control groups.
	engine := exec.Command("nsenter", "--net=/run/netns/"+c.namespace, "dockerd", "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"-H", "unix://"+c.socket, "--pidfile", filepath.Join(dir, "pid"), "--containerd", "", "--storage-driver", "vfs")
	engine.Stdout, engine.Stderr = log, log
	if err := engine.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = engine.Process.Signal(syscall.SIGTERM) // it may have ended
		cut := time.AfterFunc(time.Minute, func() { _ = engine.Process.Kill() })
		defer cut.Stop()
		err := engine.Wait()
		if text, readErr := os.ReadFile(log.Name()); readErr == nil && (t.Failed() || err != nil) {
			t.Errorf("dockerd ended with %v:\n%s", err, text)
		}
		_ = log.Close()
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := testcluster.Poll(ctx, 100*time.Millisecond, func() bool { return c.command("info").Run() == nil }); err != nil {
		t.Fatal("dockerd does not answer")
	}
	return c
}
