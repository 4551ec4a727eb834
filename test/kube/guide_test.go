//go:build kube

package kube

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// guide is docs/kubernetes.md: the proofs do what it says, with the commands and the objects that are in it.
type guide struct {
	commands []string // of its blocks of shell, and of its text
	objects  []string // its blocks of YAML
	used     map[string]bool
}

var (
	fenced = regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$")
	inline = regexp.MustCompile("(?s)`([^`]+)`")
)

// readGuide finds what the document tells its readers to do. A command in the text, too: one with kubectl or helm and something to
// do is there to be typed.
func readGuide(path string) (*guide, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	g := &guide{used: map[string]bool{}}
	for _, block := range fenced.FindAllStringSubmatch(string(text), -1) {
		switch block[1] {
		case "yaml":
			g.objects = append(g.objects, block[2])
		case "sh":
			for line := range strings.Lines(strings.ReplaceAll(block[2], "\\\n", " ")) {
				if line = strings.Join(strings.Fields(line), " "); line != "" && !strings.HasPrefix(line, "#") {
					g.commands = append(g.commands, line)
				}
			}
		default:
			return nil, fmt.Errorf("%s has a block of %s; the proofs know sh and yaml", path, block[1])
		}
	}
	for _, span := range inline.FindAllStringSubmatch(fenced.ReplaceAllString(string(text), ""), -1) {
		words := strings.Fields(span[1])
		if len(words) > 2 && (words[0] == "kubectl" || words[0] == "helm") {
			g.commands = append(g.commands, strings.Join(words, " "))
		}
	}
	if len(g.commands) == 0 || len(g.objects) == 0 {
		return nil, fmt.Errorf("%s tells nothing to do", path)
	}
	return g, nil
}

// find returns the one text that has all of the words, or is them, and notes that it was used.
func (g *guide) find(among []string, words ...string) (string, error) {
	var found []string
	for _, text := range among {
		if len(words) == 1 && text == words[0] {
			found = []string{text}
			break
		}
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(text, w) }) && !slices.Contains(found, text) {
			found = append(found, text)
		}
	}
	if len(found) != 1 {
		return "", fmt.Errorf("docs/kubernetes.md has %d places with %q, want one: %q", len(found), words, found)
	}
	g.used[found[0]] = true
	return found[0], nil
}

// unused returns what the document says that no proof has done.
func (g *guide) unused() error {
	var failed error
	for _, text := range slices.Concat(g.commands, g.objects) {
		if !g.used[text] {
			failed = errors.Join(failed, fmt.Errorf("docs/kubernetes.md says, and no proof does it:\n%s", text))
		}
	}
	return failed
}

// as replaces the document's names by the proof's: pairs of old and new.
func as(names ...string) *strings.Replacer { return strings.NewReplacer(names...) }

// follow runs the one command of the document that has these words, in the directory of the sources, as its reader would.
func (c *cluster) follow(t *testing.T, names *strings.Replacer, words ...string) string {
	t.Helper()
	command, err := c.guide.find(c.guide.commands, words...)
	if err != nil {
		t.Fatal(err)
	}
	if names != nil {
		command = names.Replace(command)
	}
	out, err := c.shell(command)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// shell runs a command of a person at a terminal, who has kubectl, helm and the administrator's configuration.
func (c *cluster) shell(command string) (string, error) {
	return run(c.stop, c.machines[0].in("env", "-C", c.repo, "PATH="+c.bin+":"+os.Getenv("PATH"), "KUBECONFIG="+c.etc("admin.kubeconfig"),
		"HOME="+c.dir, "bash", "-euc", command)...)
}

// example returns the one block of YAML of the document that has these words.
func (c *cluster) example(t *testing.T, names *strings.Replacer, words ...string) string {
	t.Helper()
	text, err := c.guide.find(c.guide.objects, words...)
	if err != nil {
		t.Fatal(err)
	}
	if names != nil {
		text = names.Replace(text)
	}
	return "---\n" + text
}

// followed: nothing is in the document that was not done here.
func (c *cluster) followed(t *testing.T) {
	if err := c.guide.unused(); err != nil {
		t.Error(err)
	}
}

// TestGuide: what the document says is found in blocks and in the text, and what nobody has done is told.
func TestGuide(t *testing.T) {
	path := filepath.Join(t.TempDir(), "guide.md")
	text := "Say `kubectl get pods`, or `helm rollback storaged\n -n x`; `kubectl` alone is a name.\n```sh\nhelm install \\\n  x\n# a remark\nkubectl get pv\n```\n```yaml\nkind: A\n```\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	g, err := readGuide(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"helm install x", "kubectl get pv", "kubectl get pods", "helm rollback storaged -n x"}; !slices.Equal(g.commands, want) {
		t.Errorf("commands: %q", g.commands)
	}
	if _, err := g.find(g.commands, "kubectl", "get"); err == nil {
		t.Error("two commands were found as one")
	}
	for _, words := range []string{"install", "pv", "rollback"} {
		if _, err := g.find(g.commands, words); err != nil {
			t.Error(err)
		}
	}
	if err := g.unused(); err == nil || !strings.Contains(err.Error(), "get pods") || !strings.Contains(err.Error(), "kind: A") || strings.Contains(err.Error(), "pv") {
		t.Errorf("what was not done: %v", err)
	}
}
