package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/size"
)

// bindFlags defines a flag for every tagged field of the configuration c points to, and of the structs in it, with its
// default.
func bindFlags(fs *pflag.FlagSet, c any) {
	v := reflect.ValueOf(c).Elem()
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag
		if part := v.Field(i); part.Kind() == reflect.Struct { // settings that several programs have
			bindFlags(fs, part.Addr().Interface())
			continue
		}
		name, def, help := tag.Get("flag"), tag.Get("default"), tag.Get("help")
		switch p := v.Field(i).Addr().Interface().(type) {
		case *string:
			fs.StringVar(p, name, def, help)
		case *bool:
			fs.BoolVar(p, name, def == "true", help)
		case *int:
			fs.IntVar(p, name, 0, help)
		case *int64:
			fs.Int64Var(p, name, 0, help)
		case *[]string:
			fs.StringSliceVar(p, name, nil, help)
		case *time.Duration:
			fs.DurationVar(p, name, 0, help)
		case *size.Bytes:
			fs.Var(p, name, help)
		default:
			panic(fmt.Sprintf("flag --%s has a type that cannot be a flag", name))
		}
		f := fs.Lookup(name)
		if def != "" {
			if err := f.Value.Set(def); err != nil {
				panic(fmt.Sprintf("flag --%s: default %q: %v", name, def, err))
			}
			f.DefValue = def
		}
	}
}

// checkClusterID returns why --cluster is none; empty is none, too, and allowed.
func checkClusterID(text string) error {
	if _, err := storage.ParseClusterID(text); text != "" && err != nil {
		return fmt.Errorf("--cluster %q: %w; storagectl status shows it", text, err)
	}
	return nil
}

// clusterID is the id that checkClusterID has accepted.
func clusterID(text string) storage.ClusterID {
	id, _ := storage.ParseClusterID(text)
	return id
}

// configured gives c the flags of the configuration that config points to, and fills it before run, also from the environment and a
// file.
func configured(c *cobra.Command, config any, run func(ctx context.Context, stderr io.Writer) error) *cobra.Command {
	var file string
	bindFlags(c.Flags(), config)
	c.Flags().StringVar(&file, "config", "", configHelp)
	c.Args = noArgs
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := applySources(cmd.Flags(), file, os.LookupEnv); err != nil {
			return err
		}
		return run(cmd.Context(), cmd.ErrOrStderr())
	}
	return c
}

// envName is the environment variable of a flag: STORAGED_DATA_DIR for data-dir.
func envName(flag string) string {
	return "STORAGED_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// applySources fills the flags that the command line leaves out: from the environment first, then from the file.
func applySources(fs *pflag.FlagSet, file string, lookup func(string) (string, bool)) error {
	values := map[string]string{}
	if file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return storage.E("read", storage.KindInvalid, "configuration file "+file, err)
		}
		raw := map[string]any{}
		if err := yaml.Unmarshal(b, &raw); err != nil {
			return storage.E("read", storage.KindInvalid, "configuration file "+file, err)
		}
		for k, v := range raw {
			if fs.Lookup(k) == nil || k == "config" || k == "help" {
				return storage.E("read", storage.KindInvalid, "configuration file "+file,
					fmt.Errorf("%q is no setting; the keys are the flags that --help shows", k))
			}
			values[k] = fmt.Sprint(v)
		}
	}
	var p storage.Problems
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Changed || f.Name == "config" || f.Name == "help" {
			return
		}
		from := "configuration file"
		v, ok := values[f.Name]
		if e, set := lookup(envName(f.Name)); set {
			v, ok, from = e, true, envName(f.Name)
		}
		if !ok {
			return
		}
		err := fs.Set(f.Name, v)
		p.Check(err == nil, "%s: %s: %w", from, f.Name, err)
	})
	return p.Err("configuration", "")
}
