//go:build !linux

package main

import (
	"errors"

	"github.com/spf13/cobra"
)

func rootCommand() *cobra.Command {
	return &cobra.Command{
		Use: "fastnet-lab", SilenceUsage: true, SilenceErrors: true, DisableFlagParsing: true,
		RunE: func(*cobra.Command, []string) error {
			return errors.New("the lab runs on Linux only: it is made of network namespaces")
		},
	}
}
