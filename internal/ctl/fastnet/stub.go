package fastnet

import "github.com/spf13/cobra"

func newLeave(o *options) *cobra.Command { return &cobra.Command{Use: "leave"} }
func newShow(o *options) *cobra.Command  { return &cobra.Command{Use: "show"} }
