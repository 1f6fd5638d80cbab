// The figures of a cell, as the report names them.

export const METRICS = {
  mmd: { title: "MMD", better: "lower", help: "Distance between the drawn and the real images." },
  mmd_squared: { title: "MMD squared", better: "lower", help: "Distance between the drawn and the real images." },
  kid: { title: "KID", better: "lower", help: "Unbiased squared distance between the drawn and the real images." },
  i2i: { title: "I2I", better: "higher", help: "Cosine of drawn and real images, x 100." },
  t2i: { title: "T2I", better: "higher", help: "Cosine of drawn images and their prompt, x 100." },
  dc_accuracy: {
    title: "DC accuracy",
    better: "higher",
    help: "Share of the training images that the diffusion classifier puts under their own concept.",
  },
};

/** Three digits, 0.0123 as much as 44.4. */
export function shownNumber(value) {
  return Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
}
