package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

var update = flag.Bool("update", false, "write testdata anew from what the commands say")

// Each file testdata/*.txt is a session at a prompt, against a cluster of its own:
//
//	# a remark
//	@ directive        changes the rig for what follows (see transcript.directive)
//	$ storagectl ...   a command; what it printed follows, standard error marked with "! ", then [exit N] unless it is 0
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d transcripts, %v", len(files), err)
	}
	for _, file := range files {
		if filepath.Base(file) == "schema.txt" {
			continue
		}
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := (&transcript{rig: newRig(t), dir: t.TempDir()}).play(string(text))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if diff := cmp.Diff(string(text), got); diff != "" {
				t.Errorf("the session went otherwise (-want +got; rewrite it with -update):\n%s", diff)
			}
		})
	}
}

type transcript struct {
	*rig
	dir    string // $DIR in commands
	answer string // what a person at the terminal types at the next question
	input  string // the next command's standard input
}

// play carries the commands and directives of text out and returns the session.
func (s *transcript) play(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "$ "):
			fmt.Fprintf(&out, "\n%s\n%s", line, s.command(strings.TrimPrefix(line, "$ storagectl ")))
		case strings.HasPrefix(line, "@ "):
			fmt.Fprintf(&out, "\n%s\n", line)
			s.directive(strings.Fields(line)[1:])
		case strings.HasPrefix(line, "#"):
			fmt.Fprintf(&out, "%s\n", line)
		}
	}
	return out.String()
}

func (s *transcript) command(line string) string {
	args := strings.Fields(line)
	for i := range args {
		args[i] = strings.ReplaceAll(strings.ReplaceAll(args[i], "$DIR", s.dir), `""`, "")
	}
	got := s.runWith(func(a *app) {
		if s.answer != "" {
			a.in, a.inTerminal = strings.NewReader(s.answer+"\n"), true
		} else {
			a.in = strings.NewReader(s.input)
		}
		s.answer, s.input = "", ""
	}, args...)
	clean := strings.NewReplacer(s.dir, "$DIR", runtime.Version(), "GOVERSION", runtime.GOOS+"/"+runtime.GOARCH, "PLATFORM")
	text := got.out
	for line := range strings.Lines(got.err) {
		text += "! " + line
	}
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	if got.code != 0 {
		text += fmt.Sprintf("[exit %d]\n", got.code)
	}
	return clean.Replace(text)
}

func (s *transcript) directive(words []string) {
	s.t.Helper()
	switch words[0] {
	case "scene": // the cluster shows something else
		s.scene(words[1])
	case "attach": // VOLUME HOLDER: a host attaches
		_, err := s.cluster.Attach(context.Background(), api.NewAttachment{Volume: storage.VolumeRef{Name: words[1]},
			Holder: storage.Holder{ID: words[2], Kind: storage.HolderHost, Host: "host-of-" + words[2]}})
		if err != nil {
			s.t.Fatal(err)
		}
	case "open": // VOLUME NODE: a client connects
		s.session(words[1], words[2])
	case "close": // VOLUME: all clients disconnect
		s.cluster.Close(words[1])
	case "plan": // free, or refused: what becomes of a node
		p := api.NodePlan{Moves: []api.NodeMove{{Group: 1, Bytes: 3 << 30, To: 3, ToName: "c"}, {Group: 2, Why: "no store for another replica: 3 nodes hold one already, and no other is up with room"}},
			Stopped: []storage.GroupID{2}, Thinner: []storage.GroupID{1}, Volumes: []string{"db"}}
		if words[1] == "refused" {
			p = api.NodePlan{Refused: "2 other nodes would remain for groups of 3 replicas; join another node first"}
		}
		s.cluster.SetPlan(p)
	case "events": // things have happened
		s.cluster.AddEvents(
			storage.Event{Kind: storage.EventNodeDown, At: s.now().Add(-2 * time.Hour), Node: 3, NodeName: "c"},
			storage.Event{Kind: storage.EventReplicaPlanned, At: s.now().Add(-time.Hour), Group: 1, Node: 4, NodeName: "d", Cause: storage.CauseDown, Other: 3, OtherName: "c"},
			storage.Event{Kind: storage.EventVolumeCreated, At: s.now(), Volume: 1, VolumeName: "db", SizeBytes: 1 << 30})
	case "verified": // what the steps of the next verification find, in their order
		s.verified(words[1:])
	case "forward": // DURATION: time passes
		d, err := time.ParseDuration(words[1])
		if err != nil {
			s.t.Fatal(err)
		}
		s.forward(d)
	case "type": // what a person answers to the next command
		s.answer = words[1]
	case "env": // NAME=VALUE
		name, value, _ := strings.Cut(words[1], "=")
		s.env[name] = strings.ReplaceAll(value, "$DIR", s.dir)
	case "file": // NAME TEXT...
		if err := os.WriteFile(filepath.Join(s.dir, words[1]), []byte(strings.Join(words[2:], " ")), 0o600); err != nil {
			s.t.Fatal(err)
		}
	case "input": // TEXT: the next command's standard input
		s.input = words[1]
	case "fail": // KIND with underscores, or nothing: what the cluster answers from now on
		s.cluster.Fail(nil)
		if len(words) > 1 {
			kind := kindNamed(s.t, strings.ReplaceAll(words[1], "_", " "))
			s.cluster.Fail(func(int) error { return storage.E("ask", kind, "catalog", fmt.Errorf("as the test wants")) })
		}
	default:
		s.t.Fatalf("there is no directive %q", words[0])
	}
}

// verified has a verification of a volume of group 1 find this, in steps that take 2 s and read 256 MiB each.
func (s *transcript) verified(found []string) {
	s.t.Helper()
	var steps []api.Verified
	for i, what := range found {
		v := api.Verified{From: storage.ExtentIndex(i + 1), Bytes: 256 << 20, Compared: 21, Done: i == len(found)-1}
		tell := func(kind api.VerifyFindingKind, text string) {
			v.Findings = []api.VerifyFinding{{Kind: kind, Group: 1, Node: 2, NodeName: "b", Text: text}}
		}
		switch what {
		case "sound":
		case "busy":
			v = api.Verified{Busy: true}
		case "away":
			v = api.Verified{}
			tell(api.FoundUnchecked, "it does not answer")
		case "mended":
			v.Mended = 3
		case "lost":
			v.Lost = 2
			tell(api.FoundLost, "2 blocks cannot be read there, nor at any other replica")
		case "tables":
			v.DamagedPages = 1
			tell(api.FoundTables, "1 pages of its tables are damaged")
		case "differs":
			tell(api.FoundDiffers, "at index 7 it holds other blocks of extent 5 than the other 2 replicas")
		default:
			s.t.Fatalf("nothing is called %q", what)
		}
		steps = append(steps, v)
	}
	s.cluster.SetVerified(steps...)
}

func kindNamed(t *testing.T, name string) storage.Kind {
	t.Helper()
	for _, k := range storage.Kinds() {
		if k.String() == name {
			return k
		}
	}
	t.Fatalf("there is no kind %q", name)
	return storage.KindNone
}
