package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server"
	"github.com/storaged/storaged/server/control"
)

// TestDocs: docs/storaged.md is what the settings say.
func TestDocs(t *testing.T) {
	const path = "../../docs/storaged.md"
	var b strings.Builder
	writeDocs(&b, rootCommand())
	old, err := os.ReadFile(path)
	if err != nil || string(old) != b.String() {
		t.Errorf("docs/storaged.md is not up to date (%v): run `make generate`", err)
	}
}

// runWith runs the program with a context that has ended, so that nothing serves.
func runWith(t *testing.T, args ...string) (out string, err error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var b bytes.Buffer
	err = run(ctx, args, &b, &b)
	return b.String(), err
}

func TestRun(t *testing.T) {
	dir := t.TempDir()
	for _, tc := range []struct {
		name string
		args []string
		exit int
		want string // in what is printed, or in the error
	}{
		{"version", []string{"version"}, 0, "storaged "},
		{"no directory", []string{"serve"}, 2, "--data-dir"},
		{"flag unknown", []string{"serve", "--bogus"}, 2, "--bogus"},
		{"argument", []string{"serve", "x"}, 2, "x"},
		{"bad size", []string{"serve", "--data-dir", dir, "--cache", "much"}, 2, "--cache"},
		{"no file", []string{"serve", "--config", filepath.Join(dir, "none")}, 2, "none"},
		{"check without directory", []string{"check"}, 2, "--data-dir"},
		{"csi without mode", []string{"csi"}, 2, "--mode"},
		{"csi without cluster", []string{"csi", "--mode", "controller"}, 2, "--endpoint"},
		{"csi node with cluster", []string{"csi", "--mode", "node", "--endpoint", "a"}, 2, "--endpoint"},
		{"csi node with TLS", []string{"csi", "--mode", "node", "--tls-ca", "a"}, 2, "--tls"},
		{"csi controller without key", []string{"csi", "--mode", "controller", "--endpoint", "a", "--tls-cert", "a"}, 2, "--tls-key"},
		{"csi controller without CA", []string{"csi", "--mode", "controller", "--endpoint", "a", "--tls-ca", filepath.Join(dir, "none")}, 2, "--tls-ca"},
		{"csi log", []string{"csi", "--mode", "node", "--log-level", "loud"}, 2, "--log-level"},
		{"csi probes", []string{"csi", "--mode", "node", "--listen-http", "127.0.0.1:none", "--socket", filepath.Join(dir, "p.sock")}, 2, "--listen-http"},
		{"csi with probes", []string{"csi", "--mode", "node", "--listen-http", "127.0.0.1:0", "--socket", filepath.Join(dir, "p.sock")}, 0, "CSI driver serves"},
		{"gateway without key", []string{"gateway", "--endpoint", "a", "--tls-cert", "a"}, 2, "--tls-key"},
		{"gateway without CA", []string{"gateway", "--endpoint", "a", "--state-dir", dir, "--tls-ca", filepath.Join(dir, "none")}, 2, "--tls-ca"},
		{"gateway with half of peer TLS", []string{"gateway", "--endpoint", "a", "--peer-tls-cert", "a"}, 2, "--peer-tls-ca"},
		{"docker-plugin without key", []string{"docker-plugin", "--tls-cert", "a"}, 2, "--tls-key"},
		{"csi controller", []string{"csi", "--mode", "controller", "--endpoint", "a", "--socket", filepath.Join(dir, "c.sock")}, 0, "CSI driver serves"},
		{"csi node", []string{"csi", "--mode", "node", "--socket", filepath.Join(dir, "n.sock")}, 0, "CSI driver serves"},
		{"docker with bad settings", []string{"docker-plugin", "--state-dir", "here", "--default-size", "3"}, 2, "--default-size"},
		{"docker without gateway", []string{"docker-plugin", "--gateway", filepath.Join(dir, "none")}, 1, "ask gateway"},
		{"docker", []string{"docker-plugin", "--endpoint", "a", "--state-dir", filepath.Join(dir, "docker"), "--socket", filepath.Join(dir, "d.sock")}, 0,
			"Docker plugin serves"},
		{"check of nothing", []string{"check", "--data-dir", dir}, 1, dir},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, err := runWith(t, tc.args...)
			exit := 0
			if err != nil {
				exit, out = exitCode(err), out+err.Error()
			}
			if exit != tc.exit || !strings.Contains(out, tc.want) {
				t.Errorf("exit code %d, want %d; it says %q, want %q in it", exit, tc.exit, out, tc.want)
			}
		})
	}
	if code := exitCode(storage.E("check", storage.KindCorrupt, "", nil)); code != 3 {
		t.Errorf("exit code %d of damage", code)
	}
	removed := storage.E("serve", storage.KindPermission, "node 3", &control.RemovedError{Node: 3, Name: "c"})
	if code := exitCode(fmt.Errorf("control: %w", removed)); code != 2 {
		t.Errorf("exit code %d of a removed node", code)
	}
	if code := exitCode(errors.New("other")); code != 1 {
		t.Errorf("exit code %d of anything else", code)
	}
}

// TestSources: the command line wins over the environment, the environment over the file, the file over defaults.
func TestSources(t *testing.T) {
	file := filepath.Join(t.TempDir(), "storaged.yaml")
	content := "zone: of-the-file\nname: of-the-file\ncache: 1GiB\nreplicas: 5\nheartbeat-timeout: 1s\nnbd-tls-require: true\ndata-dir: of-the-file\n"
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	environment := map[string]string{"STORAGED_NAME": "of-the-environment", "STORAGED_DATA_DIR": "of-the-environment"}
	lookup := func(k string) (string, bool) { v, ok := environment[k]; return v, ok }
	parse := func(args ...string) (server.Config, error) {
		var c server.Config
		fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
		bindFlags(fs, &c)
		if err := fs.Parse(args); err != nil {
			t.Fatal(err)
		}
		return c, applySources(fs, file, lookup)
	}
	c, err := parse("--data-dir", "of-the-command-line")
	if err != nil {
		t.Fatal(err)
	}
	if c.DataDir != "of-the-command-line" || c.Name != "of-the-environment" || c.Zone != "of-the-file" || c.CacheBytes != 1<<30 ||
		c.Replicas != 5 || c.HeartbeatTimeout != time.Second || !c.NBDTLSRequire || c.ListenNBD != ":10809" {
		t.Errorf("%+v", c)
	}
	environment["STORAGED_GROUPS"] = "many"
	if _, err := parse(); !errors.Is(err, storage.ErrInvalid) || !strings.Contains(err.Error(), "STORAGED_GROUPS") {
		t.Errorf("a bad value in the environment: %v", err)
	}
	delete(environment, "STORAGED_GROUPS")
	for _, bad := range []string{"zonee: x\n", "config: x\n", "- a list\n"} {
		if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := parse(); !errors.Is(err, storage.ErrInvalid) || !strings.Contains(err.Error(), file) {
			t.Errorf("a file with %q: %v", bad, err)
		}
	}
}
