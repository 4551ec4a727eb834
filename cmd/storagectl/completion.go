package main

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/storaged/storaged/api"
)

// completionPatience bounds what a person who pressed Tab waits for.
const completionPatience = 2 * time.Second

// volumes returns all volumes; none when the cluster does not answer.
func (a *app) volumes(ctx context.Context) []api.Volume {
	client, err := a.client()
	if err != nil {
		return nil
	}
	list, _ := client.Volumes(ctx, api.VolumeFilter{}, "", 0)
	return list
}

// volumeNames returns the names of all volumes; nothing when the cluster does not answer.
func (a *app) volumeNames(ctx context.Context) []string {
	return views(a.volumes(ctx), func(v api.Volume) string { return v.Name })
}

// nodeNames returns the names of all nodes; nothing when the cluster does not answer.
func (a *app) nodeNames(ctx context.Context) []string {
	client, err := a.client()
	if err != nil {
		return nil
	}
	list, _ := client.Nodes(ctx)
	return views(list, func(n api.Node) string { return n.Name })
}

// ask runs names with the settings of the command line so far, as the shell asks while it is being typed.
func (a *app) ask(c *cobra.Command, names func(context.Context) []string) []string {
	if a.resolve() != nil {
		return nil
	}
	ctx := c.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completionPatience)
	defer cancel()
	return names(ctx)
}

// completeVolumes completes up to limit arguments with names of volumes; a negative limit is none.
func (a *app) completeVolumes(limit int) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if limit >= 0 && len(args) >= limit {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names := slices.DeleteFunc(a.ask(c, a.volumeNames), func(n string) bool { return slices.Contains(args, n) })
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeNodes completes one argument with names of nodes.
func (a *app) completeNodes() cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.ask(c, a.nodeNames), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeTransfer completes a file and a volume, the volume at the position volumeAt.
func (a *app) completeTransfer(volumeAt int) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		switch {
		case len(args) > 1:
			return nil, cobra.ShellCompDirectiveNoFileComp
		case len(args) == volumeAt:
			return a.ask(c, a.volumeNames), cobra.ShellCompDirectiveNoFileComp
		default:
			return nil, cobra.ShellCompDirectiveDefault
		}
	}
}
