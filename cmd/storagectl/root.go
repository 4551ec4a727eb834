package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	storage "github.com/storaged/storaged"
)

const rootLong = `storagectl looks at and changes a storaged cluster. Any node answers for the whole cluster.

A first round:
  storagectl status                                  how the cluster is
  storagectl volume create web --size 10G            make a volume
  storagectl volume import disk.img web              fill it from a file
  storagectl volume export web copy.img              and write it out again

Where the cluster is comes from --endpoint, else STORAGECTL_ENDPOINTS, else the configuration file, else it is
127.0.0.1:7000; see 'storagectl help config'. Output for programs: -o json; see 'storagectl help output'. Exit codes by
kind of error: see 'storagectl help exit-codes'.`

// newRoot builds the tree of commands over a.
func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:               "storagectl",
		Short:             "Look at and change a storaged cluster",
		Long:              rootLong,
		SilenceErrors:     true, // app.report says what is wrong
		SilenceUsage:      true,
		Args:              noSuchCommand,
		RunE:              func(c *cobra.Command, _ []string) error { return c.Help() },
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: false},
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	a.flags.register(root)
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error {
		a.failed = c
		if err := checkForm(a.flags.output); err != nil {
			return err
		}
		a.failed = nil
		if needsNoCluster(c) {
			return nil
		}
		return a.resolve()
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		a.failed = c
		return usageError(c, err)
	})
	complete(root, "output", formTable, formWide, formJSON, formYAML)
	_ = root.RegisterFlagCompletionFunc("endpoint", cobra.NoFileCompletions)
	root.AddCommand(newVolume(a), newAttach(a), newDetach(a), newAttachments(a), newNode(a), newGroup(a), newCluster(a), newCatalog(a), newStatus(a), newExplain(a), newEvents(a), newVerify(a), newBench(a), newVersion(a), newDocs(a))
	root.AddCommand(newTopics()...)
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	refuseUnknownWords(root)
	a.prepare(root)
	return root
}

// needsNoCluster reports whether the command works with broken settings, too; completion reads them when it must.
func needsNoCluster(c *cobra.Command) bool {
	verb := "" // the command below
	for ; c.HasParent(); c = c.Parent() {
		switch c.Name() {
		case "help", "completion", "docs", cobra.ShellCompRequestCmd, cobra.ShellCompNoDescRequestCmd:
			return true
		case "catalog":
			return verb == "show"
		}
		verb = c.Name()
	}
	return false
}

// prepare makes every command below c say which command's arguments were wrong.
func (a *app) prepare(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			err := check(c, args)
			if err != nil {
				a.failed = c
				err = usageError(c, err)
			}
			return err
		}
	}
	for _, sub := range c.Commands() {
		a.prepare(sub)
	}
}

// usageError is what a wrong command line ends with. Errors that are ours already stay as they are.
func usageError(c *cobra.Command, err error) error {
	var e *storage.Error
	if errors.As(err, &e) {
		return err
	}
	return storage.E("", storage.KindInvalid, strings.TrimPrefix(strings.TrimPrefix(c.CommandPath(), "storagectl"), " "), err)
}

// newNoun returns a command that only holds others.
func newNoun(use, short string, verbs ...*cobra.Command) *cobra.Command {
	noun := &cobra.Command{Use: use, Short: short, Args: noSuchCommand,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	noun.AddCommand(verbs...)
	return noun
}

// refuseUnknownWords has the library's own commands refuse what they do not know: they would show other help, and succeed.
func refuseUnknownWords(root *cobra.Command) {
	for _, c := range root.Commands() {
		switch c.Name() {
		case "help":
			c.Args = func(c *cobra.Command, args []string) error {
				found, left, err := c.Root().Find(args)
				if err == nil && len(left) > 0 && found.HasSubCommands() {
					return noSuchCommand(found, left)
				}
				if err != nil {
					return noSuchCommand(c.Root(), args)
				}
				return nil
			}
		case "completion":
			c.Args = noSuchCommand
			c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
		}
	}
}

// noSuchCommand refuses words below a command that only holds others, and suggests what they may have meant.
func noSuchCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if c.SuggestionsMinimumDistance <= 0 {
		c.SuggestionsMinimumDistance = 2
	}
	text := fmt.Sprintf("there is no command %q", args[0])
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		text += fmt.Sprintf("; did you mean %q?", strings.Join(near, `" or "`))
	}
	return errors.New(text)
}

// takes checks that as many arguments are given as the words of the command's usage name.
func takes(words ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < len(words):
			return fmt.Errorf("%s is missing", words[len(args)])
		case len(args) > len(words):
			return fmt.Errorf("%q is one argument too many", args[len(words)])
		}
		return nil
	}
}

// newTopics returns the pages of help that belong to no command.
func newTopics() []*cobra.Command {
	return []*cobra.Command{
		{Use: "config", Short: "Where settings come from", Long: configHelp},
		{Use: "output", Short: "Forms of output, for people and for programs", Long: outputHelp},
		{Use: "exit-codes", Short: "Exit codes by kind of error", Long: "The exit code says what kind of error a command ended with. Codes never change.\n\n" + exitHelp()},
		{Use: "sizes", Short: "How sizes are written", Long: sizesHelp},
	}
}

const configHelp = `Every setting comes from the first of these that gives it:
  1. its flag
  2. its environment variable
  3. the configuration file
  4. its default

  flag               variable                    key in the file   default
  --endpoint         STORAGECTL_ENDPOINTS        endpoints         127.0.0.1:7000
  --cluster          STORAGECTL_CLUSTER          cluster           the one that the endpoints belong to
  --nbd              STORAGECTL_NBD              nbd               what the cluster says
  --nbd-tls          STORAGECTL_NBD_TLS          nbd_tls           no
  --timeout          STORAGECTL_TIMEOUT          timeout           10s
  --tls              STORAGECTL_TLS              tls.enabled       no, or yes when a certificate is named
  --tls-ca           STORAGECTL_TLS_CA           tls.ca            the system's authorities
  --tls-cert         STORAGECTL_TLS_CERT         tls.cert          none
  --tls-key          STORAGECTL_TLS_KEY          tls.key           none
  --tls-server-name  STORAGECTL_TLS_SERVER_NAME  tls.server_name   the endpoint's host

The file is the one that --config names, else STORAGECTL_CONFIG, else $XDG_CONFIG_HOME/storagectl/config.yaml, else
~/.config/storagectl/config.yaml. The last two may be missing. An example:

  endpoints: [10.0.0.1, 10.0.0.2, "10.0.0.3:7000"]
  timeout: 10s
  tls:
    ca: /etc/storaged/ca.pem

Several endpoints are tried in turn: when one is down or hangs, the next is asked. Several in the variable are separated
by commas. The port is 7000 unless one is given.`

const outputHelp = `-o table   for people; the default
-o wide    the same with more columns
-o json    for programs: one object, or an array for lists
-o yaml    the same as YAML

Field names of json and yaml are an interface: fields are added, never renamed or removed. Sizes are bytes and end in
_bytes, times are RFC 3339 in UTC, durations end in _seconds. Lists are never null; what is not known is left out.

Results go to standard output; progress, questions and errors go to standard error. With json and yaml an error is one
object, {"error": {"kind", "message", "op", "subject", "hint", "exit_code"}}, on standard error.`

const sizesHelp = `A size is a number of bytes, or a number with a unit: K, M, G, T or P, also written KiB, MiB, GiB, TiB, PiB.
Units are powers of 1024, so 10G and 10GiB are both 10737418240 bytes, as with other storage tools. 1.5G is allowed.

KB, MB, GB and so on are refused, because they mean powers of 1000 to some and of 1024 to others.

The size of a volume is a multiple of 4096 bytes, at least 4096 bytes and at most 256 TiB.`
