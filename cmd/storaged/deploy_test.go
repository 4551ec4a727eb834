package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/storaged/storaged/gateway/hostgateway"
	"github.com/storaged/storaged/server"
)

// started is one command line of storaged that something under deploy/ starts.
type started struct {
	where string
	args  []string
}

// TestDeployedArguments: what deploy/ starts storaged with is what storaged understands. deploy/kubernetes is rendered from
// the Helm chart, which tools/deploy checks.
func TestDeployedArguments(t *testing.T) {
	list := append(fromManifests(t), fromCompose(t)...)
	list = append(list, fromUnits(t)...)
	seen := map[string]int{}
	for _, s := range list {
		if len(s.args) == 0 {
			t.Errorf("%s starts storaged without a command", s.where)
			continue
		}
		seen[s.args[0]]++
		if err := understands(s.args); err != nil {
			t.Errorf("%s: storaged %s: %v", s.where, strings.Join(s.args, " "), err)
		}
	}
	if unit, err := os.ReadFile("../../deploy/systemd/storaged-host-down.service"); err != nil || !strings.Contains(string(unit), "storaged gateway host-down") {
		t.Errorf("no unit says that the host goes down: %v", err)
	}
	for _, command := range []string{"serve", "gateway", "csi", "docker-plugin"} {
		if seen[command] == 0 {
			t.Errorf("nothing under deploy/ starts `storaged %s`: the test looks in the wrong place", command)
		}
	}
	if err := understands([]string{"serve", "--data-dir=/data", "--bogus"}); err == nil {
		t.Error("a flag that there is not was understood")
	}
	if err := understands([]string{"csi", "--mode=controller"}); err == nil {
		t.Error("a controller without a cluster was understood")
	}
}

// variable is what Kubernetes puts a value for.
var variable = regexp.MustCompile(`\$\([A-Z_]+\)`)

// understands returns why storaged would refuse to start so.
func understands(args []string) error {
	filled := make([]string, len(args))
	for i, a := range args {
		filled[i] = variable.ReplaceAllString(a, "x-1")
	}
	root := rootCommand()
	root.SetOut(io.Discard)
	command, rest, err := root.Find(filled)
	if err != nil {
		return err
	}
	if err := command.ParseFlags(rest); err != nil {
		return err
	}
	if err := command.ValidateArgs(command.Flags().Args()); err != nil {
		return err
	}
	fs := pflag.NewFlagSet(command.Name(), pflag.ContinueOnError)
	switch command.Name() {
	case "serve":
		var config server.Config
		var file string
		bindFlags(fs, &config)
		fs.StringVar(&file, "config", "", configHelp)
		if err := fs.Parse(rest); err != nil {
			return err
		}
		if file != "" {
			file = filepath.Join("../../deploy/systemd", filepath.Base(file))
		}
		return errors.Join(applySources(fs, file, func(string) (string, bool) { return "", false }), config.Validate())
	case "gateway", "host-down":
		var config hostgateway.Config
		var file string
		bindFlags(fs, &config)
		fs.StringVar(&file, "config", "", configHelp)
		if err := fs.Parse(rest); err != nil {
			return err
		}
		if file != "" {
			file = filepath.Join("../../deploy/systemd", filepath.Base(file))
		}
		return errors.Join(applySources(fs, file, func(string) (string, bool) { return "", false }), config.Validate())
	case "docker-plugin":
		var config dockerConfig
		bindFlags(fs, &config)
		return errors.Join(fs.Parse(rest), config.validate())
	case "csi":
		var config csiConfig
		bindFlags(fs, &config)
		return errors.Join(fs.Parse(rest), config.validate())
	}
	return nil
}

func fromManifests(t *testing.T) (list []started) {
	t.Helper()
	files, err := filepath.Glob("../../deploy/kubernetes/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests: %v", err)
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for d := yaml.NewDecoder(f); ; {
			var object struct {
				Kind     string
				Metadata struct{ Name string }
				Spec     struct {
					Template struct {
						Spec struct {
							Containers []struct {
								Image         string
								Command, Args []string
							}
						}
					}
				}
			}
			err := d.Decode(&object)
			if errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			for _, c := range object.Spec.Template.Spec.Containers {
				if strings.HasPrefix(c.Image, "storaged:") {
					list = append(list, started{file + ": " + object.Kind + " " + object.Metadata.Name, append(c.Command, c.Args...)})
				}
			}
		}
	}
	return list
}

func fromCompose(t *testing.T) (list []started) {
	t.Helper()
	const file = "../../deploy/compose/compose.yaml"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var compose struct {
		Services map[string]struct{ Command []string }
	}
	if err := yaml.Unmarshal(b, &compose); err != nil {
		t.Fatal(err)
	}
	for name, s := range compose.Services {
		list = append(list, started{file + ": " + name, s.Command})
	}
	return list
}

func fromUnits(t *testing.T) (list []started) {
	t.Helper()
	files, err := filepath.Glob("../../deploy/systemd/*.service")
	if err != nil || len(files) == 0 {
		t.Fatalf("no units: %v", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(strings.ReplaceAll(string(b), "\\\n", " ")) {
			if _, command, ok := strings.Cut(line, "/usr/bin/storaged "); ok && strings.HasPrefix(line, "Exec") {
				list = append(list, started{file, strings.Fields(strings.TrimRight(command, "'\n"))})
			}
		}
	}
	return list
}
